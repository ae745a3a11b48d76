"""Checks of a decode step before it is relied on.

`block_errors` compares a decoder with the Llama itself, block by block on the same inputs, so that a fault is neither
hidden nor amplified by the blocks after it. `relative_error` compares results of the same kernels, as before and after
a capture. Errors stay on the device until `require` reads them.
"""

from collections.abc import Callable
from copy import copy

import torch

from ..attention import additive_mask
from ..networks.cache import KVCache
from ..networks.llama import Llama, rotary_table
from .attempts import CheckFailed

BARS = {torch.float32: 1e-3, torch.bfloat16: 0.01, torch.float16: 0.01}  # of block_errors, by the states' dtype
SAME_KERNELS_BAR = 1e-3  # of relative_error
NOISE = 64  # so that one empty slot among hundreds of keys shows


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The norm of the difference over the norm of `expected`, of the row where this is largest: float32 []."""
    return _row_norms(result - expected).div(_row_norms(expected).clamp(min=1e-12)).amax()


def require(*checks: tuple[list[torch.Tensor], float]):
    """Raises CheckFailed unless the errors of each (errors, bar) are at most the bar; waits for the device once."""
    shares = torch.stack([torch.stack(errors).amax() / bar for errors, bar in checks])
    share = shares.nan_to_num(nan=torch.inf).amax().item()
    if share > 1:
        raise CheckFailed(f"its result differs, {share:.3g} times as much as rounding explains")


def block_errors(
    llama: Llama, cache: KVCache, starts, first_slots, decoder: Callable, x, slots: list[int]
) -> list[torch.Tensor]:
    """Errors of a decoder's blocks, keys and values against the Llama's.

    The input of each block is the Llama's output of the block before it. Every cache slot after the current one holds
    noise meanwhile, so that reading one shows; afterwards the slots from slots[0] on are empty.

    Args:
        starts, first_slots: int64 [rows], as in DecodeState.
        decoder: its `block(layer, x, slot)` computes one block for x [rows, hidden] at `slot`, int64 [1].
        x: input embeddings [rows, hidden].
        slots: where the step is tried, ascending; slots[0] is the first that is empty.

    Returns:
        float32 [] each: of what a block adds to its input, beyond the rounding of the sum, and of the keys and of the
        values that it writes.
    """
    plain, errors = _PlainBlocks(llama, cache, starts, first_slots), []
    first = slots[0]
    fill_with_noise(cache, first)
    for slot in slots:
        states, at = x, torch.full((1,), slot, device=x.device)
        for layer in range(len(llama.layers)):
            buffers = cache.keys[layer], cache.values[layer]
            noise = [buffer[:, :, slot].clone() for buffer in buffers]
            expected = plain.block(layer, states, slot)
            filled = [buffer.clone() for buffer in buffers]
            for buffer, old in zip(buffers, noise):
                buffer[:, :, slot] = old
            result = decoder.block(layer, states, at)
            errors.append(_sum_error(result, expected, states))
            for buffer, theirs in zip(buffers, filled):
                written = _row_norms(theirs[:, :, slot]).clamp(min=1e-12)
                errors.append(_row_norms(buffer - theirs).div(written).amax())
                buffer.copy_(theirs)
            states = expected
    clear_slots(cache, first)
    return errors


def fill_with_noise(cache: KVCache, first: int):
    """Fills the slots from `first` on: keys of the magnitude of the one before, and values of NOISE times that."""
    generator = torch.Generator(cache.keys.device).manual_seed(0)
    for buffer, factor in ((cache.keys, 1), (cache.values, NOISE)):
        empty = buffer[..., first:, :]
        noise = torch.randn(empty.shape[2:], generator=generator, device=buffer.device, dtype=torch.float32)
        empty.copy_(noise * factor * buffer[..., first - 1, :].float().std())


def clear_slots(cache: KVCache, first: int):
    """Empties the slots from `first` on."""
    for buffer in (cache.keys, cache.values):
        buffer[..., first:, :].zero_()


class _PlainBlocks:
    """The Llama's blocks as the plain decode loop runs them."""

    def __init__(self, llama: Llama, cache: KVCache, starts, first_slots):
        self.llama, self.cache, self.starts = llama, copy(cache), starts[:, None]
        slots = torch.arange(cache.keys.shape[3], device=starts.device)
        self.visible = slots >= first_slots[:, None]

    def block(self, layer: int, x, slot: int):
        p, self.cache.length = self.llama.params, slot
        rotary = rotary_table(slot - self.starts, p.head_dim, p.rope_theta, x.dtype)
        mask = additive_mask(self.visible[:, None, None, : slot + 1], x.dtype)
        return self.llama.layers[layer](x[:, None], rotary, layer, self.cache, mask, None)[:, 0]


def _sum_error(result, expected, x) -> torch.Tensor:
    """The error of a block's output beyond its last rounding, over what the block adds to x."""
    expected, rounding = expected.float(), torch.finfo(x.dtype).eps
    error = ((result.float() - expected).abs() - rounding * expected.abs()).clamp(min=0)
    added = _row_norms(expected - x.float()).clamp(min=1e-12)
    return torch.where(result.isfinite().all(), _row_norms(error).div(added).amax(), torch.inf)


def _row_norms(x):
    """float32 [rows]."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float32)
