"""Gradient checkpointing (arXiv 1604.06174): a block's activations are computed again in the backward pass."""

from functools import wraps

import torch
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model):
    """Checkpoints every block of the language model and of the understanding encoder, in place.

    Blocks are unchanged where no gradients are computed, as in sampling. They contain no randomness, so no state of the
    random number generators is stored for them.
    """
    tower = getattr(model, "vision_model", None) or model.vision_und_enc_model
    for block in (*model.llama.layers, *tower.vision_tower.blocks):
        if not is_checkpointed(block):
            block.forward = _checkpointed(block.forward)


def is_checkpointed(module: torch.nn.Module) -> bool:
    """Whether a module or a part of it is checkpointed."""
    return any(hasattr(part.forward, "checkpointed") for part in module.modules())


def _checkpointed(forward):
    @wraps(forward)
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    run.checkpointed = True
    return run
