"""Triton kernels of a decode step: one position per row through a Llama block.

A decode step is bound by the bandwidth of reading weights, so each weight is read once, and norm, rotary embedding,
cache writes, activation and residual are fused into the projections. One or two rows (an image and its unconditional
row) are multiplied in registers as they would be in a GEMV; more rows are padded to a tile of the tensor cores (GEMM).
Sums and norms are float32. Weights have the dtype of the rows, or 8 bits with one scale per output channel.

Importing this module needs Triton. With TRITON_INTERPRET=1 set before the import, the kernels run on a CPU for tests.
"""

import triton
import triton.language as tl

MAX_GEMV_ROWS = 2  # above, tensor cores are used; the kernels test BM <= 2
KEY_BLOCK = 32  # keys per iteration of the attention kernel
MIN_DOT_SIZE = 16  # the smallest M and N of tl.dot


@triton.jit
def _load_weight_tile(w, n, k, width: tl.constexpr):
    """Rows n and columns k of a weight [..., width]."""
    return tl.load(w + n[:, None] * width + k[None, :], mask=(k < width)[None, :], other=0.0)


@triton.jit
def _load_row(x, k, width: tl.constexpr):
    return tl.load(x + k, mask=k < width, other=0.0).to(tl.float32)


@triton.jit
def _column_range(start, BK: tl.constexpr):
    """BK columns from `start` on, contiguous by 8, so that weights and rows get the same layout across threads."""
    return start + tl.max_contiguous(tl.arange(0, BK), 8)


@triton.jit
def _sum_of_squares(x, width: tl.constexpr):
    """Sum of squares of one row, [1]."""
    squares = tl.zeros([1024], dtype=tl.float32)
    for start in range(0, width, 1024):
        row = _load_row(x, start + tl.arange(0, 1024), width)
        squares += row * row
    return tl.sum(squares, axis=0) * tl.full([1], 1.0, dtype=tl.float32)


@triton.jit
def _stack_rows(first, second, BM: tl.constexpr):
    """Results of one or two rows as a tile [BM, ...]."""
    if BM == 2:
        return tl.where(tl.arange(0, 2)[:, None] == 0, first[None, :], second[None, :])
    else:
        return first[None, :]


@triton.jit
def _dequantize(acc, scale, n, SCALED: tl.constexpr):
    if SCALED:
        acc *= tl.load(scale + n).to(tl.float32)[None, :]
    return acc


@triton.jit
def _dual_gemv(x, gain, w_a, w_b, n_a, n_b, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """(x * gain) times rows n_a and n_b of two weights for one or two rows, and the sums of squares of x."""
    a_0 = tl.zeros([BN, BK], dtype=tl.float32)
    b_0 = tl.zeros([BN, BK], dtype=tl.float32)
    a_1, b_1 = a_0, b_0
    for start in range(0, WIDTH, BK):
        k = _column_range(start, BK)
        tile_a = _load_weight_tile(w_a, n_a, k, WIDTH).to(tl.float32)
        tile_b = _load_weight_tile(w_b, n_b, k, WIDTH).to(tl.float32)
        gains = _load_row(gain, k, WIDTH)
        row = _load_row(x, k, WIDTH) * gains
        a_0 += tile_a * row[None, :]
        b_0 += tile_b * row[None, :]
        if BM == 2:
            row = _load_row(x + WIDTH, k, WIDTH) * gains
            a_1 += tile_a * row[None, :]
            b_1 += tile_b * row[None, :]
    a = _stack_rows(tl.sum(a_0, axis=1), tl.sum(a_1, axis=1), BM)
    b = _stack_rows(tl.sum(b_0, axis=1), tl.sum(b_1, axis=1), BM)
    return a, b, _stack_rows(_sum_of_squares(x, WIDTH), _sum_of_squares(x + WIDTH if BM == 2 else x, WIDTH), BM)


@triton.jit
def _dual_gemm(
    x, gain, w_a, w_b, n_a, n_b, rows, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """The same for up to BM rows on tensor cores."""
    m = tl.arange(0, BM)[:, None]
    a = tl.zeros([BM, BN], dtype=tl.float32)
    b = tl.zeros([BM, BN], dtype=tl.float32)
    squares = tl.zeros([BM], dtype=tl.float32)
    for start in range(0, WIDTH, BK):
        k = start + tl.arange(0, BK)
        raw = tl.load(x + m * WIDTH + k[None, :], mask=m < rows, other=0.0)
        wide = raw.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        scaled = (wide * _load_row(gain, k, WIDTH)[None, :]).to(raw.dtype)
        a = tl.dot(scaled, tl.trans(_load_weight_tile(w_a, n_a, k, WIDTH).to(raw.dtype)), a, input_precision="ieee")
        b = tl.dot(scaled, tl.trans(_load_weight_tile(w_b, n_b, k, WIDTH).to(raw.dtype)), b, input_precision="ieee")
    return a, b, squares[:, None]


@triton.jit
def _norm_dual_matmul(
    x, gain, eps, w_a, w_b, scale_a, scale_b, n_a, n_b, rows,
    WIDTH: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """RMSNorm of x [rows, WIDTH], times rows n_a of one weight and n_b of another: two float32 [BM, BN].

    The norm's scale factor is applied after the products, since it is known only once all of x has been read.
    """
    if BM <= 2:
        a, b, squares = _dual_gemv(x, gain, w_a, w_b, n_a, n_b, WIDTH, BM, BN, BK)
    else:
        a, b, squares = _dual_gemm(x, gain, w_a, w_b, n_a, n_b, rows, WIDTH, BM, BN, BK)
    factor = tl.rsqrt(squares / WIDTH + eps)
    return _dequantize(a * factor, scale_a, n_a, SCALED), _dequantize(b * factor, scale_b, n_b, SCALED)


@triton.jit
def _qkv_kernel(
    x, gain, eps, w_q, w_k, w_v, scale_q, scale_k, scale_v, cosines, sines, starts, slot, queries, keys, values,
    rows, row_stride, head_stride, heads, kv_heads,
    WIDTH: tl.constexpr, HALF: tl.constexpr, SCALED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """RMSNorm, q/k/v projection, rotary embedding, cache write. One program: BN columns of each half of one head."""
    head = tl.program_id(0) // (HALF // BN)
    j = tl.program_id(0) % (HALF // BN) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    current = tl.load(slot)
    if head < heads:
        local_head, w, scale = head, w_q, scale_q
        out = queries + m.to(tl.int64) * heads * 2 * HALF + local_head * 2 * HALF
    elif head < heads + kv_heads:
        local_head, w, scale = head - heads, w_k, scale_k
        out = keys + m.to(tl.int64) * row_stride + local_head * head_stride + current * 2 * HALF
    else:
        local_head, w, scale = head - heads - kv_heads, w_v, scale_v
        out = values + m.to(tl.int64) * row_stride + local_head * head_stride + current * 2 * HALF
    n = local_head * 2 * HALF + j
    a, b = _norm_dual_matmul(x, gain, eps, w, w, scale, scale, n, n + HALF, rows, WIDTH, SCALED, BM, BN, BK)
    if head < heads + kv_heads:
        position = current - tl.load(starts + m, mask=m < rows, other=0)
        at = position[:, None] * HALF + j[None, :]
        cos, sin = tl.load(cosines + at), tl.load(sines + at)
        a, b = a * cos - b * sin, b * cos + a * sin
    at = out[:, None] + j[None, :]
    in_range = (m < rows)[:, None]
    tl.store(at, a.to(queries.dtype.element_ty), mask=in_range)
    tl.store(at + HALF, b.to(queries.dtype.element_ty), mask=in_range)


@triton.jit
def _attention_kernel(
    queries, keys, values, starts, slot, out, row_stride, head_stride, heads, group, scale,
    DIM: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """One head of one row: BS online softmaxes (arXiv 2205.14135, algorithm 1) over every BS-th key, then merged."""
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, DIM)
    at = (row * heads + head) * DIM + d
    query = tl.load(queries + at).to(tl.float32) * (scale * 1.4426950408889634)  # log2(e), for exp2
    base = row.to(tl.int64) * row_stride + head // group * head_stride
    first, end = tl.load(starts + row), tl.load(slot) + 1
    running_max = tl.full([BS], -1e30, dtype=tl.float32)
    total = tl.zeros([BS], dtype=tl.float32)
    acc = tl.zeros([BS, DIM], dtype=tl.float32)
    for begin in tl.range(first, end, BS, num_stages=3):
        s = begin + tl.arange(0, BS)
        in_range = s < end
        offsets = base + s[:, None] * DIM + d[None, :]
        k = tl.load(keys + offsets, mask=in_range[:, None], other=0.0).to(tl.float32)
        v = tl.load(values + offsets, mask=in_range[:, None], other=0.0).to(tl.float32)
        scores = tl.where(in_range, tl.sum(k * query[None, :], axis=1), -float("inf"))
        new_max = tl.maximum(running_max, scores)
        p, decay = tl.exp2(scores - new_max), tl.exp2(running_max - new_max)
        acc = acc * decay[:, None] + p[:, None] * v
        total = total * decay + p
        running_max = new_max
    weight = tl.exp2(running_max - tl.max(running_max, axis=0))
    acc = tl.sum(acc * weight[:, None], axis=0) / tl.sum(total * weight, axis=0)
    tl.store(out + at, acc.to(out.dtype.element_ty))


@triton.jit
def _gate_up_kernel(
    x, gain, eps, w_gate, w_up, scale_gate, scale_up, y, rows, N: tl.constexpr,
    WIDTH: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [rows, N] = silu(gate) * up."""
    m, n = tl.arange(0, BM)[:, None], tl.program_id(0) * BN + tl.arange(0, BN)
    gate, up = _norm_dual_matmul(
        x, gain, eps, w_gate, w_up, scale_gate, scale_up, n, n, rows, WIDTH, SCALED, BM, BN, BK
    )
    tl.store(y + m * N + n[None, :], (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=m < rows)


@triton.jit
def _linear_residual_kernel(
    x, w, scale, residual, y, rows, N: tl.constexpr,
    WIDTH: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [rows, N] = residual + x [rows, WIDTH] times w [N, WIDTH]."""
    m, n = tl.arange(0, BM)[:, None], tl.program_id(0) * BN + tl.arange(0, BN)
    if BM <= 2:
        acc_0 = tl.zeros([BN, BK], dtype=tl.float32)
        acc_1 = acc_0
        for start in tl.range(0, WIDTH, BK, loop_unroll_factor=2):
            k = _column_range(start, BK)
            tile = _load_weight_tile(w, n, k, WIDTH).to(tl.float32)
            acc_0 += tile * _load_row(x, k, WIDTH)[None, :]
            if BM == 2:
                acc_1 += tile * _load_row(x + WIDTH, k, WIDTH)[None, :]
        acc = _stack_rows(tl.sum(acc_0, axis=1), tl.sum(acc_1, axis=1), BM)
    else:
        acc = tl.zeros([BM, BN], dtype=tl.float32)
        for start in range(0, WIDTH, BK):
            k = start + tl.arange(0, BK)
            raw = tl.load(x + m * WIDTH + k[None, :], mask=m < rows, other=0.0)
            acc = tl.dot(raw, tl.trans(_load_weight_tile(w, n, k, WIDTH).to(raw.dtype)), acc, input_precision="ieee")
    at = m * N + n[None, :]
    acc = _dequantize(acc, scale, n, SCALED) + tl.load(residual + at, mask=m < rows, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=m < rows)


def _launch_config(x, layers) -> tuple[list, dict]:
    """Pointers to weights and scales, and compile-time parameters of a matmul kernel for rows x [rows, width].

    Block sizes keep many bytes in flight per multiprocessor: in registers for GEMV (hence the cap of 128 per thread),
    in shared memory (4 stages) for GEMM.
    """
    rows, width = x.shape
    scaled = layers[0][1] is not None
    weights = [weight for weight, _ in layers]
    scales = [scale for _, scale in layers] if scaled else weights  # placeholders that are not read
    if rows <= MAX_GEMV_ROWS:
        blocks = {"BN": 4, "BK": 1024, "num_warps": 4} if len(layers) == 1 else {"BN": 2, "BK": 512, "num_warps": 2}
        config = {**blocks, "BM": rows, "maxnreg": 128}
    else:
        config = {
            "BM": max(MIN_DOT_SIZE, triton.next_power_of_2(rows)),
            "BN": MIN_DOT_SIZE,
            "BK": min(256 if rows <= MIN_DOT_SIZE else 128, width & -width),
            "num_warps": 2,  # more warps would read each tile more often
            "num_stages": 4,
        }
    return [*weights, *scales], {"WIDTH": width, "SCALED": scaled, **config}


def qkv_projection(x, norm, layers, rotary, starts, slot, keys, values, out):
    """RMSNorm, the q, k and v projections, and rotary embedding; keys and values are written to their cache slot.

    Args:
        x: [rows, width].
        norm: (weight [width], eps).
        layers: of queries, keys and values: (weight [heads * D, width], scale [heads * D] or None).
        rotary: float32 cosines and sines [positions, D / 2].
        starts: int64 [rows], the slot of each row's position 0.
        slot: int64 [1].
        keys, values: the layer's cache, [rows, kv_heads, capacity, D].
        out: the queries, [rows, heads * D].
    """
    pointers, config = _launch_config(x, layers)
    kv_heads, half = keys.shape[1], keys.shape[3] // 2
    heads = out.shape[1] // (2 * half)
    _qkv_kernel[((heads + 2 * kv_heads) * (half // config["BN"]),)](
        x, *norm, *pointers, *rotary, starts, slot, out, keys, values,
        len(x), *keys.stride()[:2], heads, kv_heads, HALF=half, **config,
    )  # fmt: skip


def attention(queries, keys, values, starts, slot, out):
    """Attention of one position over the cache slots from each row's start to `slot`; [rows, heads * D] in and out."""
    rows, kv_heads, _, dim = keys.shape
    heads = queries.shape[1] // dim
    _attention_kernel[(rows, heads)](
        queries, keys, values, starts, slot, out, *keys.stride()[:2], heads, heads // kv_heads, dim**-0.5,
        DIM=dim, BS=KEY_BLOCK,
    )  # fmt: skip


def gate_up(x, norm, gate, up, out):
    """RMSNorm and SwiGLU, silu(gate) * up, of [rows, width] to [rows, N]; layers are (weight, scale or None)."""
    pointers, config = _launch_config(x, (gate, up))
    _gate_up_kernel[(out.shape[1] // config["BN"],)](x, *norm, *pointers, out, len(x), N=out.shape[1], **config)


def linear_residual(x, layer, residual, out):
    """residual [rows, N] + x [rows, width] times a layer's (weight [N, width], scale or None)."""
    pointers, config = _launch_config(x, (layer,))
    _linear_residual_kernel[(out.shape[1] // config["BN"],)](
        x, *pointers, residual, out, len(x), N=out.shape[1], **config
    )
