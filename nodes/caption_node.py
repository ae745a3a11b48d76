"""Janus Caption Folder."""

import os
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from ..janus_core.errors import ImageError
from ..janus_core.image import open_picture
from ..janus_core.sampling.choice import Choice
from .describe_node import QUESTION, describe

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class JanusCaptionFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusCaptionFolder",
            display_name="Janus Caption Folder",
            category="Janus/text",
            description="Writes a caption .txt beside every picture of an input folder, the layout that LoRA training "
            "reads. Pictures that have one are skipped, so a cancelled run goes on where it stopped; a picture that "
            "cannot be read is reported and the others go on.",
            search_aliases=["janus", "caption", "dataset", "lora", "tag", "batch describe"],
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Janus-Pro or Load JanusFlow."),
                io.Combo.Input(
                    "folder",
                    options=folder_paths.get_input_subfolders(),
                    tooltip="A folder inside ComfyUI's input folder.",
                ),
                io.String.Input("question", multiline=True, default=QUESTION, tooltip="Asked about every picture."),
                io.Int.Input("max_new_tokens", default=256, min=1, max=4096, tooltip="The longest caption."),
                io.String.Input("prefix", default="", tooltip="Put in front of every caption: a trigger word, say."),
                io.Boolean.Input("overwrite", default=False, tooltip="Write captions anew that are there already."),
            ],
            outputs=[
                io.String.Output(display_name="captions", is_output_list=True, tooltip="The captions of this run."),
                io.String.Output(display_name="report", tooltip="How many were written, skipped, and not readable."),
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
    """Captions every picture of a folder, one file after another. Returns (captions, report)."""
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise ImageError(f"There are no pictures in {folder.name}.")
    todo = [path for path in pictures if overwrite or not path.with_suffix(".txt").exists()]
    progress = comfy.utils.ProgressBar(len(pictures))
    captions, failed = [], []
    for k, path in enumerate(todo):
        progress.update_absolute(len(pictures) - len(todo) + k)
        try:
            picture = open_picture(path)
        except ImageError as error:
            failed.append(str(error))
            continue
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)[None]
        (answer,) = describe(clip, pixels, question, max_new_tokens, Choice(temperature=0), seed=0, progress=False)
        captions.append(prefix + answer.strip())
        path.with_suffix(".txt").write_text(captions[-1], encoding="utf-8")
    progress.update_absolute(len(pictures))
    report = f"{len(captions)} written, {len(pictures) - len(todo)} skipped, {len(failed)} not readable"
    return captions, "\n".join([report, *failed])
