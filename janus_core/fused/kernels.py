"""Triton kernels of a decode step: one position of a few rows through a Llama block.

Such a step's time is that of reading the weights. Each is read once, and what stands before and after a product (norm,
rotation, cache, activation, residual) goes along with it, so that little else is read or started. The rows are padded
to what the matrix units take; sums and norms are in float32. Weights are of the rows' dtype, or of 8 bits with one
scale per output.

Importing this module needs Triton. Where TRITON_INTERPRET=1 is set before, the kernels run on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl

OUTPUTS = 16  # rows of a weight that one program multiplies by
KEYS = 64  # keys that a program of attention reads at a time
STAGES = 4  # tiles of a weight that are on their way at a time
LEAST = 16  # the smallest side of a tile


@triton.jit
def _tile(w, n, k, width: tl.constexpr, like):
    """Rows n and columns k of a weight [.., width], transposed, in the dtype of `like`."""
    return tl.trans(tl.load(w + n[:, None] * width + k[None, :]).to(like.dtype))


@triton.jit
def _scaled(acc, scale, n, SCALED: tl.constexpr):
    if SCALED:
        acc *= tl.load(scale + n).to(tl.float32)[None, :]
    return acc


@triton.jit
def _two_products(
    x, gain, eps, w_a, w_b, scale_a, scale_b, n_a, n_b, rows,
    WIDTH: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """RMSNorm of x [rows, WIDTH], times rows n_a of one weight and n_b of another: two float32 [BM, BN].

    The norm's factor is known when all of x was read, and applied then.
    """
    m = tl.arange(0, BM)[:, None]
    a = tl.zeros([BM, BN], dtype=tl.float32)
    b = tl.zeros([BM, BN], dtype=tl.float32)
    squares = tl.zeros([BM], dtype=tl.float32)
    for start in range(0, WIDTH, BK):
        k = start + tl.arange(0, BK)
        raw = tl.load(x + m * WIDTH + k[None, :], mask=m < rows, other=0.0)
        wide = raw.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        normed = (wide * tl.load(gain + k).to(tl.float32)[None, :]).to(raw.dtype)
        a = tl.dot(normed, _tile(w_a, n_a, k, WIDTH, normed), a, input_precision="ieee")
        b = tl.dot(normed, _tile(w_b, n_b, k, WIDTH, normed), b, input_precision="ieee")
    factor = tl.rsqrt(squares / WIDTH + eps)[:, None]
    return _scaled(a * factor, scale_a, n_a, SCALED), _scaled(b * factor, scale_b, n_b, SCALED)


@triton.jit
def _qkv(
    x, gain, eps, w_q, w_k, w_v, scale_q, scale_k, scale_v, cosines, sines, starts, slot, queries, keys, values,
    rows, row_stride, head_stride, heads, kv_heads,
    WIDTH: tl.constexpr, HALF: tl.constexpr, SCALED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program makes BN columns of the first half of a head of queries, keys or values, and those of the second."""
    head = tl.program_id(0) // (HALF // BN)
    j = tl.program_id(0) % (HALF // BN) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    here = tl.load(slot)
    if head < heads:
        own, w, scale = head, w_q, scale_q
        out = queries + m.to(tl.int64) * heads * 2 * HALF + own * 2 * HALF
    elif head < heads + kv_heads:
        own, w, scale = head - heads, w_k, scale_k
        out = keys + m.to(tl.int64) * row_stride + own * head_stride + here * 2 * HALF
    else:
        own, w, scale = head - heads - kv_heads, w_v, scale_v
        out = values + m.to(tl.int64) * row_stride + own * head_stride + here * 2 * HALF
    n = own * 2 * HALF + j
    a, b = _two_products(x, gain, eps, w, w, scale, scale, n, n + HALF, rows, WIDTH, SCALED, BM, BN, BK)
    if head < heads + kv_heads:
        position = here - tl.load(starts + m, mask=m < rows, other=0)
        at = position[:, None] * HALF + j[None, :]
        cos, sin = tl.load(cosines + at), tl.load(sines + at)
        a, b = a * cos - b * sin, b * cos + a * sin
    at = out[:, None] + j[None, :]
    inside = (m < rows)[:, None]
    tl.store(at, a.to(queries.dtype.element_ty), mask=inside)
    tl.store(at + HALF, b.to(queries.dtype.element_ty), mask=inside)


@triton.jit
def _attend(
    queries, keys, values, starts, slot, out, row_stride, head_stride, heads, group, scale,
    DIM: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """One head of one row: a running softmax over the row's keys up to the slot (arXiv 2205.14135, algorithm 1)."""
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, DIM)
    at = (row * heads + head) * DIM + d
    query = tl.load(queries + at).to(tl.float32) * (scale * 1.4426950408889634)  # for powers of 2
    base = row.to(tl.int64) * row_stride + head // group * head_stride
    first, end = tl.load(starts + row), tl.load(slot) + 1
    best, total, acc = -float("inf"), 0.0, tl.zeros([DIM], dtype=tl.float32)
    for begin in tl.range(first, end, BS, num_stages=3):
        s = begin + tl.arange(0, BS)
        inside = s < end
        offsets = base + s[:, None] * DIM + d[None, :]
        k = tl.load(keys + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        v = tl.load(values + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        scores = tl.where(inside, tl.sum(k * query[None, :], axis=1), -float("inf"))
        most = tl.maximum(best, tl.max(scores, axis=0))
        p, fade = tl.exp2(scores - most), tl.exp2(best - most)
        acc = acc * fade + tl.sum(p[:, None] * v, axis=0)
        total = total * fade + tl.sum(p, axis=0)
        best = most
    tl.store(out + at, (acc / total).to(out.dtype.element_ty))


@triton.jit
def _gated(
    x, gain, eps, w_gate, w_up, scale_gate, scale_up, y, rows, N: tl.constexpr,
    WIDTH: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [rows, N] = silu(gate) * up."""
    m, n = tl.arange(0, BM)[:, None], tl.program_id(0) * BN + tl.arange(0, BN)
    gate, up = _two_products(x, gain, eps, w_gate, w_up, scale_gate, scale_up, n, n, rows, WIDTH, SCALED, BM, BN, BK)
    tl.store(y + m * N + n[None, :], (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=m < rows)


@triton.jit
def _added(
    x, w, scale, residual, y, rows, N: tl.constexpr,
    WIDTH: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [rows, N] = residual + x [rows, WIDTH] times w [N, WIDTH]."""
    m, n = tl.arange(0, BM)[:, None], tl.program_id(0) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], dtype=tl.float32)
    for start in range(0, WIDTH, BK):
        k = start + tl.arange(0, BK)
        tile = tl.load(x + m * WIDTH + k[None, :], mask=m < rows, other=0.0)
        acc = tl.dot(tile, _tile(w, n, k, WIDTH, tile), acc, input_precision="ieee")
    at = m * N + n[None, :]
    acc = _scaled(acc, scale, n, SCALED) + tl.load(residual + at, mask=m < rows, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=m < rows)


def _arguments(x, layers) -> tuple[list, dict]:
    """The pointers to weights and to their scales, and what the kernel for rows x [rows, width] is made for."""
    rows, width = x.shape
    scaled = layers[0][1] is not None
    weights = [weight for weight, _ in layers]
    scales = [scale for _, scale in layers] if scaled else weights  # which are then not read
    made_for = {
        "WIDTH": width,
        "SCALED": scaled,
        "BM": max(LEAST, triton.next_power_of_2(rows)),
        "BN": OUTPUTS,
        "BK": min(256 if rows <= LEAST else 128, width & -width),  # a power of 2 that divides the width
        "num_stages": STAGES,
    }
    return [*weights, *scales], made_for


def project(x, norm, layers, table, starts, slot, keys, values):
    """Normed rows through the projections of attention; keys and values go to their slot of the cache.

    Args:
        x: [rows, width].
        norm: (gain [width], eps).
        layers: of queries, keys and values: (weight [heads * D, width], scale [heads * D] or None).
        table: float32 cosines and sines [positions, D / 2].
        starts: int64 [rows], the slot of each row's position 0.
        slot: int64 [1].
        keys, values: of the layer, [rows, kv_heads, capacity, D].

    Returns:
        queries [rows, heads * D].
    """
    pointers, made_for = _arguments(x, layers)
    kv_heads, half = keys.shape[1], keys.shape[3] // 2
    queries = x.new_empty(len(x), len(pointers[0]))
    heads = queries.shape[1] // (2 * half)
    _qkv[((heads + 2 * kv_heads) * (half // OUTPUTS),)](
        x, *norm, *pointers, *table, starts, slot, queries, keys, values,
        len(x), *keys.stride()[:2], heads, kv_heads, HALF=half, **made_for,
    )  # fmt: skip
    return queries


def attend(queries, keys, values, starts, slot):
    """Attention of one position over the cache, from each row's start up to the slot; [rows, heads * D] both ways."""
    rows, kv_heads, _, dim = keys.shape
    heads = queries.shape[1] // dim
    out = torch.empty_like(queries)
    _attend[(rows, heads)](
        queries, keys, values, starts, slot, out, *keys.stride()[:2], heads, heads // kv_heads, dim**-0.5,
        DIM=dim, BS=KEYS,
    )  # fmt: skip
    return out


def gated(x, norm, gate, up):
    """silu(gate) * up of normed rows [rows, width]; `gate` and `up` are (weight [N, width], scale or None)."""
    pointers, made_for = _arguments(x, (gate, up))
    y = x.new_empty(len(x), len(pointers[0]))
    _gated[(y.shape[1] // OUTPUTS,)](x, *norm, *pointers, y, len(x), N=y.shape[1], **made_for)
    return y


def added(x, layer, residual):
    """`residual` [rows, N] and the product of x [rows, width] with a layer (weight [N, width], scale or None)."""
    pointers, made_for = _arguments(x, (layer,))
    y = torch.empty_like(residual)
    _added[(y.shape[1] // OUTPUTS,)](x, *pointers, residual, y, len(x), N=y.shape[1], **made_for)
    return y
