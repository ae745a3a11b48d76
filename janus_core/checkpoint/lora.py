"""Merges LoRAs (arXiv 2106.09685) into a checkpoint's weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..schema import Number, check, shown
from .lora_read import Change, read_lora
from .quantize import COMFY_QUANT
from .read import Checkpoint

Lora = str | Path | tuple[str | Path, float]  # a file or folder, perhaps with its strength
STRENGTH = Number(-100, 100)  # as in ComfyUI


def with_loras(checkpoint: Checkpoint, loras: Lora | Sequence[Lora]) -> Checkpoint:
    """A copy of a checkpoint with LoRAs merged into its weights: W + sum of strength * alpha / rank * B A.

    The sum is computed in float32, as ComfyUI does it, and then rounded once to the weight's dtype. A strength of 0
    leaves every weight as it is.

    Args:
        loras: files or peft folders (see `read_lora`), each alone or as (path, strength); the strength is 1 by default.

    Raises:
        CheckpointError: a LoRA cannot be read, does not fit the model, or changes a quantised weight.
    """
    tensors = dict(checkpoint.tensors)
    for name, pairs in lora_changes(checkpoint, loras).items():
        tensors[name] = _merged(tensors[name], pairs)
        if not tensors[name].isfinite().all():
            raise CheckpointError(f"{name} is not finite once the LoRAs are merged: use a lower strength.")
    return replace(checkpoint, tensors=tensors)


def lora_changes(checkpoint: Checkpoint, loras: Lora | Sequence[Lora]) -> dict[str, list[tuple[Change, float]]]:
    """What LoRAs change in a checkpoint: {weight: [(change, strength)]}. Arguments and errors are `with_loras`'s."""
    changes: dict[str, list[tuple[Change, float]]] = {}
    for path, strength in _pairs(loras):
        for change in read_lora(path, checkpoint.tensors):
            if not strength:
                continue
            if change.name.removesuffix("weight") + COMFY_QUANT in checkpoint.tensors:
                raise CheckpointError(
                    f"{checkpoint.path} has quantised weights, which round most of a LoRA away: merge {path} into "
                    "the original checkpoint, which may be stored in 8 bits after that (--weights)."
                )
            changes.setdefault(change.name, []).append((change, strength))
    return changes


@torch.no_grad()
def _merged(weight: torch.Tensor, changes: list[tuple[Change, float]]) -> torch.Tensor:
    total = weight.to(torch.float32, copy=True)
    for change, strength in changes:
        rows = total if change.third is None else total.chunk(3)[change.third]
        rows += change.scaled(strength).view(rows.shape)
    return total.to(weight.dtype)


def _pairs(loras) -> list[tuple[str | Path, float]]:
    """(path, strength) of each LoRA."""
    is_pair = isinstance(loras, tuple) and len(loras) == 2 and isinstance(loras[1], (int, float))
    pairs = []
    for lora in loras if isinstance(loras, (list, tuple)) and not is_pair else [loras]:
        path, strength = lora if isinstance(lora, (list, tuple)) and len(lora) == 2 else (lora, 1.0)
        if not isinstance(path, (str, Path)):
            raise CheckpointError(f"A LoRA is {shown(lora)}, it must be a path or (path, strength).")
        check(f"The strength of {path}", strength, STRENGTH, CheckpointError)
        pairs.append((path, float(strength)))
    return pairs
