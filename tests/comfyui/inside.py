"""Checks that need ComfyUI's modules in the process: run by test_inside.py with ComfyUI's Python and folder."""

import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path.cwd()), str(PACK)]
sys.argv = ["inside", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.memory_management  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402

from janus_core.checkpoint import build_model, build_vq, read_checkpoint  # noqa: E402

GOLDENS = PACK / "tests" / "data" / "goldens"


def models_load_into_layers_that_are_empty_until_loaded():
    """With dynamic VRAM, ComfyUI's Linear has no weight before its state dict is loaded."""
    comfy.memory_management.aimdo_enabled = True
    for name in ("ar-a", "flow-a"):
        checkpoint = read_checkpoint(GOLDENS / name)
        reference = build_model(checkpoint, dtype=torch.float32)
        ids = torch.arange(10)[None]
        expected = reference.llama(reference.embed_text(ids, torch.float32))
        for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast):
            model = build_model(checkpoint, operations=operations, dtype=torch.float32)
            assert torch.allclose(model.llama(model.embed_text(ids, torch.float32)), expected, atol=1e-5)
    build_vq(read_checkpoint(GOLDENS / "ar-a"), operations=comfy.ops.disable_weight_init)


with torch.inference_mode():
    models_load_into_layers_that_are_empty_until_loaded()
print("fine")
