"""Counter-based random numbers: a pure function of (seed, position, token), on any device and at any batch size.

A number is the hash of its counters by splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014) in wrapping int64 arithmetic. Sampling by the Gumbel-max trick (arXiv 1411.0030, section 2)
then needs no state: the next token is the argmax of log-probability plus noise.
"""

import torch


def _signed(value: int) -> int:
    """The int64 with the same bits as a uint64."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)
BITS = 40


def _shift_right(x, n: int):
    return (x >> n) & ((1 << (64 - n)) - 1)


def mix(x):
    """splitmix64's finaliser on an int64 tensor."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def stream_keys(seed: int, indices, device) -> torch.Tensor:
    """One key per image: int64 [B] from (seed + image index) mod 2^64."""
    keys = torch.tensor([_signed(seed + int(i)) for i in indices], dtype=torch.int64, device=device)
    return mix(keys + GOLDEN)


def gumbel(keys, position, size: int):
    """Standard Gumbel noise for every token of one position.

    Args:
        keys: from stream_keys, [B].
        position: index of the token being sampled: a number, int64 [1], or [P, 1] for several.
        size: V, the number of tokens to choose from.

    Returns:
        float32 [B, V], or [P, B, V].
    """
    counter = torch.arange(1, size + 1, dtype=torch.int64, device=keys.device) * GOLDEN
    step = (position + 1) * GOLDEN
    at_position = mix(keys + (_signed(step) if isinstance(step, int) else step))
    bits = _shift_right(mix(at_position[..., None] + counter), 64 - BITS)
    # 1 - u keeps float32's precision where it matters: large noise comes from u near 1.
    one_minus_u = ((bits + 1).float() * 2.0**-BITS).clamp_(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-one_minus_u))
