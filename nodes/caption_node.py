"""Janus Caption Folder."""

import os
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from ..janus_core import captions
from ..janus_core.errors import ImageError
from ..janus_core.image import open_image
from ..janus_core.sampling.settings import TextSamplerSettings
from .describe_node import QUESTION, describe
from .inputs import max_new_tokens_input


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
                max_new_tokens_input(256, "The longest caption, in tokens."),
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
        written, report = caption_folder(clip, folder_of(folder), question, max_new_tokens, prefix, overwrite)
        return io.NodeOutput(written, report, ui={"text": (report,)})


def folder_of(name: str) -> Path:
    """The input subfolder of this name. Raises ImageError when it is not one."""
    root = folder_paths.get_input_directory()
    path = os.path.abspath(os.path.join(root, name))
    if not os.path.isdir(path) or os.path.commonpath((root, path)) != os.path.abspath(root):
        raise ImageError(f"There is no folder {name} in ComfyUI's input folder.")
    return Path(path)


def caption_folder(clip, folder: Path, question, max_new_tokens, prefix, overwrite) -> tuple[list[str], str]:
    """Captions the images of a folder one by one. Returns (captions, report).

    Raises:
        ImageError: the folder has no images.
        OutputError: a caption cannot be written.
    """
    images = captions.image_files(folder)
    conflicts = captions.conflicts(images)
    progress = comfy.utils.ProgressBar(len(images))
    settings = TextSamplerSettings(max_new_tokens=max_new_tokens)
    written, skipped, failed = [], 0, sorted(set(conflicts.values()))
    for k, path in enumerate(images):
        progress.update_absolute(k)
        if path in conflicts:
            continue
        try:
            if not overwrite and captions.read_caption(path):
                skipped += 1
                continue
            image = open_image(path)
        except ImageError as error:
            failed.append(str(error))
            continue
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)[None]
        (answer,) = describe(clip, pixels, question, settings, progress=False)
        written.append(prefix + answer.strip())
        captions.write_caption(path, written[-1])
    progress.update_absolute(len(images))
    count = len(images) - len(written) - skipped
    return written, "\n".join([f"{len(written)} written, {skipped} skipped, {count} failed", *failed])
