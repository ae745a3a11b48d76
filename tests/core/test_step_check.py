"""The check of decode steps: correct kernels of other rounding pass it, and every fault that it is meant for fails it.

The faults are what a first, looser check let pass.
"""

import copy
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import janus_core
from benchmarks import AR
from janus_core.checkpoint import WEIGHT_FORMATS
from janus_core.checkpoint.quantize import quantize_weight
from janus_core.networks import llama as llama_module
from janus_core.networks.cache import GraphKVCache, KVCache
from janus_core.networks.llama import Llama, LlamaParams, causal_mask
from janus_core.operations.quantized import operations_over
from janus_core.sampling.attempts import CheckFailed
from janus_core.sampling.graph_decode import PlainDecoder
from janus_core.sampling.step_check import BARS, SAME_KERNELS_BAR, block_errors, relative_error, require
from janus_core.triton_decoder import decoder as triton_decoder

PROMPT, CAPACITY, LATER = 20, 100, 60
STARTS = torch.tensor([0, 4])


class Float32(PlainDecoder):
    """Computes in float32, as fused kernels do."""

    def block(self, layer, x, slot):
        wide = copy.copy(self)
        wide.llama = SimpleNamespace(params=self.llama.params, layers={layer: as_float32(self.llama.layers[layer])})
        return PlainDecoder.block(wide, layer, x.float(), slot).to(x.dtype)


def as_float32(block):
    """A copy of a block with float32 weights; quantised ones are dequantised."""
    block = copy.deepcopy(block)
    for layer in block.modules():
        if getattr(layer, "scale", None) is not None:
            layer.weight, layer.scale = torch.nn.Parameter(layer.dequantized(), requires_grad=False), None
    return block.float()


class HidesItsOwnKey(PlainDecoder):
    def _mask(self, slot, dtype):
        return super()._mask(slot - 1, dtype)


class SeesAnEmptySlot(PlainDecoder):
    def _mask(self, slot, dtype):
        return super()._mask(slot + 1, dtype)


class MissesTheFirstKey(PlainDecoder):
    def __init__(self, llama, cache, starts, first_slots):
        super().__init__(llama, cache, starts, first_slots + 1)


class WritesOneSlotLate(PlainDecoder):
    def block(self, layer, x, slot):
        with mock.patch(
            "janus_core.sampling.graph_decode.GraphKVCache", lambda cache, slot: GraphKVCache(cache, slot + 1)
        ):
            return super().block(layer, x, slot)


class LeavesKeysUnrotated(PlainDecoder):
    def block(self, layer, x, slot):
        rotate, calls = llama_module.rotate, []

        def queries_only(x, cos, sin):
            calls.append(x)
            return rotate(x, cos, sin) if len(calls) == 1 else x

        with mock.patch.object(llama_module, "rotate", queries_only):
            return super().block(layer, x, slot)


class ZeroesAHead(PlainDecoder):
    def block(self, layer, x, slot):
        dim = self.llama.params.head_dim

        def without_second_head(layer, args):
            attended = args[0].clone()
            attended[..., dim : 2 * dim] = 0
            return attended

        out = self.llama.layers[layer].self_attn.o_proj
        handle = out.register_forward_pre_hook(without_second_head)
        try:
            return super().block(layer, x, slot)
        finally:
            handle.remove()


class Overflows(PlainDecoder):
    def block(self, layer, x, slot):
        return super().block(layer, x, slot).index_fill(1, torch.tensor([3]), torch.nan)


FAULTS = [
    HidesItsOwnKey, SeesAnEmptySlot, MissesTheFirstKey, WritesOneSlotLate, LeavesKeysUnrotated, ZeroesAHead, Overflows
]  # fmt: skip


def random_llama(dtype, **params):
    sizes = dict(vocab_size=8, hidden_size=256, intermediate_size=704, layers=3, heads=4, kv_heads=4, head_dim=64)
    model = Llama(LlamaParams(**{**sizes, **params}), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            std = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.1
            weight.normal_(float(weight.dim() == 1), std, generator=generator)
    return model


@torch.inference_mode()
def errors_of(llama, make, slots, embeds=None) -> tuple[list, KVCache]:
    """block_errors after a prompt of two rows, of which the second is shorter."""
    dtype = llama.norm.weight.dtype
    if embeds is None:
        generator = torch.Generator().manual_seed(1)
        embeds = torch.randn(2, PROMPT + 1, llama.params.hidden_size, generator=generator).to(dtype)
    cache = KVCache(llama.params, 2, CAPACITY, dtype, "cpu")
    cache.keys, cache.values = cache.keys.to(dtype), cache.values.to(dtype)
    visible = torch.arange(PROMPT) >= STARTS[:, None]
    mask = causal_mask(PROMPT, 0, dtype, "cpu", visible)
    llama(embeds[:, :PROMPT], torch.arange(PROMPT) - STARTS[:, None], cache, mask)
    decoder = make(llama, cache, STARTS, STARTS)
    return block_errors(llama, cache, STARTS, STARTS, decoder, embeds[:, PROMPT], slots), cache


def passes(errors, dtype) -> bool:
    try:
        require((errors, BARS[dtype]))
        return True
    except CheckFailed:
        return False


@pytest.fixture(scope="module")
def trained():
    """(Llama, embeddings of prompts) of the demo checkpoint, by dtype."""

    def load(dtype):
        pipe = janus_core.load(AR, device="cpu", dtype=torch.float32)
        ids = torch.randint(5, 400, (2, PROMPT + 1), generator=torch.Generator().manual_seed(2))
        embeds = pipe.model.embed_text(ids, torch.float32).to(dtype)
        plain = Llama(pipe.model.params.llama, dtype=dtype)
        plain.load_state_dict(pipe.model.llama.state_dict())
        return plain, embeds

    return load


MODELS = ["random", "trained"]
DTYPES = [torch.float32, torch.bfloat16]


def model_of(kind, dtype, trained):
    return (random_llama(dtype), None) if kind == "random" else trained(dtype)


@pytest.mark.parametrize("slot", [PROMPT, LATER])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODELS)
def test_each_fault_is_caught_at_either_position(trained, kind, dtype, slot):
    llama, embeds = model_of(kind, dtype, trained)
    for decoder in FAULTS:
        errors = errors_of(llama, decoder, sorted({PROMPT, slot}), embeds)[0]
        assert not passes(errors[-3 * len(llama.layers) :], dtype), decoder.__name__


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODELS)
def test_correct_kernels_pass_with_a_quarter_of_the_bar_to_spare(trained, kind, dtype):
    llama, embeds = model_of(kind, dtype, trained)
    for decoder in (PlainDecoder, Float32):
        errors, cache = errors_of(llama, decoder, [PROMPT, LATER], embeds)
        assert len(errors) == 2 * 3 * len(llama.layers) and max(errors) < 0.75 * BARS[dtype], decoder.__name__
        assert not cache.keys[..., PROMPT:, :].any() and not cache.values[..., PROMPT:, :].any()
        assert cache.keys[..., PROMPT - 1, :].any()


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_correct_kernels_on_8_bit_weights_pass(weights):
    """The plain layers round the scales to bfloat16, which fused kernels do not."""
    llama = random_llama(torch.bfloat16, layers=1)
    for layer in [m for m in llama.modules() if isinstance(m, torch.nn.Linear)]:
        stored, scale = quantize_weight(layer.weight.detach(), WEIGHT_FORMATS[weights])
        layer.__class__ = operations_over(torch.nn).Linear
        layer.register_buffer("scale", scale.flatten(), persistent=False)
        layer.weight = torch.nn.Parameter(stored, requires_grad=False)
    errors, _ = errors_of(llama, Float32, [PROMPT, LATER])
    assert max(errors) < BARS[torch.bfloat16], max(errors)


def test_results_of_the_same_kernels_must_be_the_same():
    expected = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    require(([relative_error(expected.clone(), expected)], SAME_KERNELS_BAR))
    for change in (torch.tensor([[0.0], [0.002]]), torch.tensor([[torch.nan], [0.0]])):
        with pytest.raises(CheckFailed, match="differs"):
            require(([relative_error(expected * (1 + change), expected)], SAME_KERNELS_BAR))


@contextmanager
def kernel_changed(name, change):
    """A kernel's launcher called with other arguments."""
    from janus_core.triton_decoder import kernels

    launcher = getattr(kernels, name)
    with mock.patch.object(kernels, name, lambda *args: launcher(*change(*args))):
        yield


def zero_second_head(attended, *rest):
    attended[:, 32:64] = 0
    return attended, *rest


def rotary_of_position_0(x, norm, layers, rotary, *rest):
    return x, norm, layers, [table[:1].expand_as(table).contiguous() for table in rotary], *rest


KERNEL_FAULTS = {
    "own key hidden": ("attention", lambda q, k, v, starts, slot, out: (q, k, v, starts, slot - 1, out)),
    "empty slot seen": ("attention", lambda q, k, v, starts, slot, out: (q, k, v, starts, slot + 1, out)),
    "first key missed": ("attention", lambda q, k, v, starts, slot, out: (q, k, v, starts + 1, slot, out)),
    "one slot late": ("qkv_projection", lambda *a: (*a[:5], a[5] + 1, *a[6:])),
    "unrotated": ("qkv_projection", rotary_of_position_0),
    "head zeroed": ("linear_residual", lambda *a: zero_second_head(*a) if a[0].shape[1] == 64 else a),
}


@pytest.mark.parametrize("fault", [None, *KERNEL_FAULTS])
def test_faults_of_the_triton_kernels_are_caught(fault, larger_tiles):
    """In Triton's interpreter, which is slow: one block of two small heads."""
    pytest.importorskip("triton", minversion="3.4", reason="needs a Triton whose interpreter is complete")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is used where there is no GPU")
    llama = random_llama(
        torch.float32, hidden_size=96, intermediate_size=160, layers=1, heads=2, kv_heads=2, head_dim=32
    )
    for slots in ([PROMPT], [PROMPT, LATER]):
        with nullcontext() if fault is None else kernel_changed(*KERNEL_FAULTS[fault]):
            errors = errors_of(llama, triton_decoder.TritonDecoder, slots)[0][-3:]
        assert passes(errors, torch.float32) == (fault is None), slots
