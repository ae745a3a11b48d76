"""Janus Caption Folder."""

import os
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from ..janus_core.errors import ImageError
from ..janus_core.files import write_text
from ..janus_core.image import open_image
from ..janus_core.sampling.settings import TextSamplerSettings
from .describe_node import QUESTION, describe

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class JanusCaptionFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusCaptionFolder",
            display_name="Janus Caption Folder",
            category="Janus/text",
            description="Writes a caption .txt beside every image of an input folder, the layout that LoRA training "
            "reads. Images that have one are skipped, so a cancelled run continues where it stopped; an image that "
            "cannot be read is reported and skipped.",
            search_aliases=["janus", "deepseek", "caption", "dataset", "lora", "tag", "batch describe"],
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Janus-Pro or Load JanusFlow."),
                io.Combo.Input(
                    "folder",
                    options=folder_paths.get_input_subfolders(),
                    tooltip="A folder inside ComfyUI's input folder.",
                ),
                io.String.Input("question", multiline=True, default=QUESTION, tooltip="Asked about every image."),
                io.Int.Input("max_new_tokens", default=256, min=1, max=4096, tooltip="The longest caption, in tokens."),
                io.String.Input(
                    "prefix", default="", tooltip="Put in front of every caption, for example a trigger word."
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace captions that exist already."),
            ],
            outputs=[
                io.String.Output(display_name="captions", is_output_list=True, tooltip="The captions of this run."),
                io.String.Output(
                    display_name="report",
                    tooltip="How many captions were written, how many images were skipped or could not be read.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return float("nan")  # the folder's files may change between runs

    @classmethod
    def execute(cls, clip, folder, question, max_new_tokens, prefix, overwrite) -> io.NodeOutput:
        captions, report = caption_folder(clip, folder_of(folder), question, max_new_tokens, prefix, overwrite)
        return io.NodeOutput(captions, report, ui={"text": (report,)})


def folder_of(name: str) -> Path:
    """The input subfolder of this name. Raises ImageError when it is not one."""
    root = folder_paths.get_input_directory()
    path = os.path.abspath(os.path.join(root, name))
    if not os.path.isdir(path) or os.path.commonpath((root, path)) != os.path.abspath(root):
        raise ImageError(f"There is no folder {name} in ComfyUI's input folder.")
    return Path(path)


def caption_folder(clip, folder: Path, question, max_new_tokens, prefix, overwrite) -> tuple[list[str], str]:
    """Captions the images of a folder one by one. Returns (captions, report)."""
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        raise ImageError(f"There are no images in {folder.name}.")
    todo = [path for path in images if overwrite or not path.with_suffix(".txt").exists()]
    progress = comfy.utils.ProgressBar(len(images))
    settings = TextSamplerSettings(max_new_tokens=max_new_tokens)
    captions, failed = [], []
    for k, path in enumerate(todo):
        progress.update_absolute(len(images) - len(todo) + k)
        try:
            image = open_image(path)
        except ImageError as error:
            failed.append(str(error))
            continue
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)[None]
        (answer,) = describe(clip, pixels, question, settings, progress=False)
        captions.append(prefix + answer.strip())
        write_text(path.with_suffix(".txt"), captions[-1])
    progress.update_absolute(len(images))
    report = f"{len(captions)} written, {len(images) - len(todo)} skipped, {len(failed)} not readable"
    return captions, "\n".join([report, *failed])
