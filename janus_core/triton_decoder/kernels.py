"""Triton kernels of a decode step: one position of a few rows through a Llama block.

Such a step's time is that of reading the weights. Each is read once, and what stands before and after a product (norm,
rotation, cache, activation, residual) goes along with it, so that little else is read or started. One or two rows, a
picture and its guidance, are multiplied where the weights arrive, in registers; more are padded for the matrix units.
Sums and norms are in float32. Weights are of the rows' dtype, or of 8 bits with one scale per output.

Importing this module needs Triton. Where TRITON_INTERPRET=1 is set before, the kernels run on a CPU, for tests.
"""

import triton
import triton.language as tl

FEW = 2  # rows that are multiplied without matrix units; the kernels ask whether BM is at most that
KEYS = 32  # keys that a program of attention reads at a time
LEAST = 16  # the smallest side of a matrix unit's tile


@triton.jit
def _tile(w, n, k, width: tl.constexpr):
    """Rows n and columns k of a weight [.., width]."""
    return tl.load(w + n[:, None] * width + k[None, :], mask=(k < width)[None, :], other=0.0)


@triton.jit
def _row(x, k, width: tl.constexpr):
    return tl.load(x + k, mask=k < width, other=0.0).to(tl.float32)


@triton.jit
def _columns(start, BK: tl.constexpr):
    """BK columns from `start` on; threads take 8 at a time of weights and rows alike, so that none change hands."""
    return start + tl.max_contiguous(tl.arange(0, BK), 8)


@triton.jit
def _squares(x, width: tl.constexpr):
    """The sum of a row's squares, [1]."""
    squares = tl.zeros([1024], dtype=tl.float32)
    for start in range(0, width, 1024):
        row = _row(x, start + tl.arange(0, 1024), width)
        squares += row * row
    return tl.sum(squares, axis=0) * tl.full([1], 1.0, dtype=tl.float32)


@triton.jit
def _stacked(first, second, BM: tl.constexpr):
    """The values of one or two rows as a tile [BM, ..]."""
    if BM == 2:
        return tl.where(tl.arange(0, 2)[:, None] == 0, first[None, :], second[None, :])
    else:
        return first[None, :]


@triton.jit
def _scaled(acc, scale, n, SCALED: tl.constexpr):
    if SCALED:
        acc *= tl.load(scale + n).to(tl.float32)[None, :]
    return acc


@triton.jit
def _two_products_of_few(
    x, gain, w_a, w_b, n_a, n_b, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """One or two rows, in registers: x times the gain, times rows n_a and n_b of two weights, and x's squares."""
    a_0 = tl.zeros([BN, BK], dtype=tl.float32)
    b_0 = tl.zeros([BN, BK], dtype=tl.float32)
    a_1, b_1 = a_0, b_0
    for start in range(0, WIDTH, BK):
        k = _columns(start, BK)
        tile_a, tile_b = _tile(w_a, n_a, k, WIDTH).to(tl.float32), _tile(w_b, n_b, k, WIDTH).to(tl.float32)
        gains = _row(gain, k, WIDTH)
        row = _row(x, k, WIDTH) * gains
        a_0 += tile_a * row[None, :]
        b_0 += tile_b * row[None, :]
        if BM == 2:
            row = _row(x + WIDTH, k, WIDTH) * gains
            a_1 += tile_a * row[None, :]
            b_1 += tile_b * row[None, :]
    a = _stacked(tl.sum(a_0, axis=1), tl.sum(a_1, axis=1), BM)
    b = _stacked(tl.sum(b_0, axis=1), tl.sum(b_1, axis=1), BM)
    return a, b, _stacked(_squares(x, WIDTH), _squares(x + WIDTH if BM == 2 else x, WIDTH), BM)


@triton.jit
def _two_products_of_many(
    x, gain, w_a, w_b, n_a, n_b, rows, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """The same for up to BM rows, by the matrix units."""
    m = tl.arange(0, BM)[:, None]
    a = tl.zeros([BM, BN], dtype=tl.float32)
    b = tl.zeros([BM, BN], dtype=tl.float32)
    squares = tl.zeros([BM], dtype=tl.float32)
    for start in range(0, WIDTH, BK):
        k = start + tl.arange(0, BK)
        raw = tl.load(x + m * WIDTH + k[None, :], mask=m < rows, other=0.0)
        wide = raw.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        gained = (wide * _row(gain, k, WIDTH)[None, :]).to(raw.dtype)
        a = tl.dot(gained, tl.trans(_tile(w_a, n_a, k, WIDTH).to(raw.dtype)), a, input_precision="ieee")
        b = tl.dot(gained, tl.trans(_tile(w_b, n_b, k, WIDTH).to(raw.dtype)), b, input_precision="ieee")
    return a, b, squares[:, None]


@triton.jit
def _two_products(
    x, gain, eps, w_a, w_b, scale_a, scale_b, n_a, n_b, rows,
    WIDTH: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """RMSNorm of x [rows, WIDTH], times rows n_a of one weight and n_b of another: two float32 [BM, BN].

    The norm's factor is known when all of x was read, and applied then.
    """
    if BM <= 2:
        a, b, squares = _two_products_of_few(x, gain, w_a, w_b, n_a, n_b, WIDTH, BM, BN, BK)
    else:
        a, b, squares = _two_products_of_many(x, gain, w_a, w_b, n_a, n_b, rows, WIDTH, BM, BN, BK)
    factor = tl.rsqrt(squares / WIDTH + eps)
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
    """One head of one row: BS running softmaxes (arXiv 2205.14135, algorithm 1), each over every BS-th key, joined."""
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, DIM)
    at = (row * heads + head) * DIM + d
    query = tl.load(queries + at).to(tl.float32) * (scale * 1.4426950408889634)  # for powers of 2
    base = row.to(tl.int64) * row_stride + head // group * head_stride
    first, end = tl.load(starts + row), tl.load(slot) + 1
    best = tl.full([BS], -1e30, dtype=tl.float32)
    total = tl.zeros([BS], dtype=tl.float32)
    acc = tl.zeros([BS, DIM], dtype=tl.float32)
    for begin in tl.range(first, end, BS, num_stages=3):
        s = begin + tl.arange(0, BS)
        inside = s < end
        offsets = base + s[:, None] * DIM + d[None, :]
        k = tl.load(keys + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        v = tl.load(values + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        scores = tl.where(inside, tl.sum(k * query[None, :], axis=1), -float("inf"))
        most = tl.maximum(best, scores)
        p, fade = tl.exp2(scores - most), tl.exp2(best - most)
        acc = acc * fade[:, None] + p[:, None] * v
        total = total * fade + p
        best = most
    share = tl.exp2(best - tl.max(best, axis=0))
    acc = tl.sum(acc * share[:, None], axis=0) / tl.sum(total * share, axis=0)
    tl.store(out + at, acc.to(out.dtype.element_ty))


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
    if BM <= 2:
        acc_0 = tl.zeros([BN, BK], dtype=tl.float32)
        acc_1 = acc_0
        for start in tl.range(0, WIDTH, BK, loop_unroll_factor=2):
            k = _columns(start, BK)
            tile = _tile(w, n, k, WIDTH).to(tl.float32)
            acc_0 += tile * _row(x, k, WIDTH)[None, :]
            if BM == 2:
                acc_1 += tile * _row(x + WIDTH, k, WIDTH)[None, :]
        acc = _stacked(tl.sum(acc_0, axis=1), tl.sum(acc_1, axis=1), BM)
    else:
        acc = tl.zeros([BM, BN], dtype=tl.float32)
        for start in range(0, WIDTH, BK):
            k = start + tl.arange(0, BK)
            raw = tl.load(x + m * WIDTH + k[None, :], mask=m < rows, other=0.0)
            acc = tl.dot(raw, tl.trans(_tile(w, n, k, WIDTH).to(raw.dtype)), acc, input_precision="ieee")
    at = m * N + n[None, :]
    acc = _scaled(acc, scale, n, SCALED) + tl.load(residual + at, mask=m < rows, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=m < rows)


def _arguments(x, layers) -> tuple[list, dict]:
    """The pointers to weights and to their scales, and what the kernel for rows x [rows, width] is made for.

    The sizes are for many bytes on their way to a multiprocessor: of few rows, threads hold what they wait for in 128
    registers; of more, tiles wait in shared memory, four at a time.
    """
    rows, width = x.shape
    scaled = layers[0][1] is not None
    weights = [weight for weight, _ in layers]
    scales = [scale for _, scale in layers] if scaled else weights  # which are then not read
    if rows <= FEW:
        tile = {"BN": 4, "BK": 1024, "num_warps": 4} if len(layers) == 1 else {"BN": 2, "BK": 512, "num_warps": 2}
        made_for = {**tile, "BM": rows, "maxnreg": 128}
    else:
        widest = 256 if rows <= LEAST else 128
        made_for = {"BM": max(LEAST, triton.next_power_of_2(rows)), "BN": LEAST, "BK": min(widest, width & -width)}
        made_for |= {"num_warps": 2, "num_stages": 4}  # more warps would only read each tile more often
    return [*weights, *scales], {"WIDTH": width, "SCALED": scaled, **made_for}


def project(x, norm, layers, table, starts, slot, keys, values, out):
    """Normed rows through the projections of attention; keys and values go to their slot of the cache.

    Args:
        x: [rows, width].
        norm: (gain [width], eps).
        layers: of queries, keys and values: (weight [heads * D, width], scale [heads * D] or None).
        table: float32 cosines and sines [positions, D / 2].
        starts: int64 [rows], the slot of each row's position 0.
        slot: int64 [1].
        keys, values: of the layer, [rows, kv_heads, capacity, D].
        out: the queries, [rows, heads * D].
    """
    pointers, made_for = _arguments(x, layers)
    kv_heads, half = keys.shape[1], keys.shape[3] // 2
    heads = out.shape[1] // (2 * half)
    _qkv[((heads + 2 * kv_heads) * (half // made_for["BN"]),)](
        x, *norm, *pointers, *table, starts, slot, out, keys, values,
        len(x), *keys.stride()[:2], heads, kv_heads, HALF=half, **made_for,
    )  # fmt: skip


def attend(queries, keys, values, starts, slot, out):
    """Attention of one position over the cache, from each row's start up to the slot; [rows, heads * D] both ways."""
    rows, kv_heads, _, dim = keys.shape
    heads = queries.shape[1] // dim
    _attend[(rows, heads)](
        queries, keys, values, starts, slot, out, *keys.stride()[:2], heads, heads // kv_heads, dim**-0.5,
        DIM=dim, BS=KEYS,
    )  # fmt: skip


def gated(x, norm, gate, up, out):
    """silu(gate) * up of normed rows [rows, width] to [rows, N]; both layers are (weight [N, width], scale or None)."""
    pointers, made_for = _arguments(x, (gate, up))
    _gated[(out.shape[1] // made_for["BN"],)](x, *norm, *pointers, out, len(x), N=out.shape[1], **made_for)


def added(x, layer, residual, out):
    """`residual` [rows, N] and the product of x [rows, width] with a layer (weight [N, width], scale or None)."""
    pointers, made_for = _arguments(x, (layer,))
    _added[(out.shape[1] // made_for["BN"],)](x, *pointers, residual, out, len(x), N=out.shape[1], **made_for)
