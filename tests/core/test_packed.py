"""Packed linear layers and blockwise attention on a CPU give the results of the plain ones."""

import copy

import pytest
import torch

import janus_core
from janus_core import attention, operations
from janus_core.checkpoint import build_model, read_checkpoint
from janus_core.networks.llama import causal_mask, linears
from janus_core.operations import choose_operations, packed, packed_int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear(dtype, bias):
    torch.manual_seed(0)
    layer = packed.Linear(96, 40, bias=bias, dtype=dtype)
    x = torch.randn(3, 7, 96, dtype=dtype)
    expected = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float() if bias else None)
    with torch.no_grad():
        for rows in (x, x[:, :1], x.transpose(0, 1), x[:1]):
            y = layer(rows)
        assert y.dtype == dtype
        assert torch.allclose(layer(x).float(), expected, atol=2e-5 if dtype == torch.float32 else 0.05)


def test_a_weight_is_packed_once_and_again_when_it_is_replaced(monkeypatch):
    pack, packed_weights = torch.ops.mkldnn._reorder_linear_weight, []
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: packed_weights.append(1) or pack(weight, rows)
    )
    layer, x = packed.Linear(8, 8, bias=False, dtype=torch.bfloat16), torch.ones(1, 8)
    weight = layer.weight
    with torch.inference_mode():
        first = layer(x)
        assert torch.equal(layer(x), first) and len(packed_weights) == 1
        layer.weight = torch.nn.Parameter(weight.float() * 2, requires_grad=False)
        torch.testing.assert_close(layer(x), 2 * first)
        layer.weight = weight
        assert torch.equal(layer(x), first) and len(packed_weights) == 3
        weight.zero_()
        assert torch.equal(layer(x), first), "a change in place is not noticed"
        layer.packed.clear()
        assert not layer(x).any()
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_a_packed_layer_can_be_copied_and_keeps_the_file_dtype():
    layer = packed.Linear(8, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        y = layer(torch.ones(1, 8))
        assert torch.equal(copy.deepcopy(layer)(torch.ones(1, 8)), y)
    assert y.dtype == torch.float32 and layer.weight.dtype == layer.bias.dtype == torch.bfloat16


def test_layers_with_one_input_are_multiplied_together(monkeypatch):
    products = []
    linear = packed.PackedWeight.linear
    monkeypatch.setattr(packed.PackedWeight, "linear", lambda *args: products.append(len(args[2])) or linear(*args))
    layers = [packed.Linear(16, size) for size in (8, 24, 8)]
    x = torch.randn(2, 3, 16)
    expected = [torch.nn.functional.linear(x, layer.weight, layer.bias) for layer in layers]

    def outputs():
        products.clear()
        with torch.inference_mode():
            return linears(x, *layers)

    torch.testing.assert_close(outputs(), tuple(expected))
    assert products == [3]
    layers[1].weight = torch.nn.Parameter(2 * layers[1].weight.detach())
    layers[1].bias = torch.nn.Parameter(2 * layers[1].bias.detach())
    torch.testing.assert_close(outputs()[1], 2 * expected[1])
    layers[2] = torch.nn.Linear(16, 8)
    assert torch.equal(outputs()[2], layers[2](x)) and products == [1, 1]
    assert linears(x, *layers)[0].requires_grad


def test_gradients_use_the_plain_weight():
    layer = packed.Linear(8, 8)
    layer(torch.ones(1, 8)).sum().backward()
    assert layer.weight.grad is not None and layer.packed.packed is None


def test_weights_stay_in_the_dtype_of_their_file(golden):
    """They can stay memory-mapped; norms and convolutions, which are small, are cast when loaded."""
    model = janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32).model
    assert model.llama.layers[0].mlp.up_proj.weight.dtype == model.llama.embed_tokens.weight.dtype == torch.bfloat16
    assert (
        model.llama.norm.weight.dtype == model.vision_model.vision_tower.patch_embed.proj.weight.dtype == torch.float32
    )


needs_int8 = pytest.mark.skipif(not packed_int8.available(), reason="this CPU or torch does not multiply int8 exactly")


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(1,), (2, 1), (3,), (2, 17)])
def test_packed_int8(dtype, rows):
    """The product of the rounded input and the rounded weight is exact."""
    torch.manual_seed(0)
    x = torch.randn(*rows, 256).to(dtype)
    x[..., 7] *= 50  # an outlier
    weight, scale = torch.randint(-127, 128, (40, 256), dtype=torch.int8), torch.rand(40, 1) + 0.1
    bias = torch.randn(40)
    quantised, row_scale = packed_int8.quantize_rows(x.reshape(-1, 256))
    rounded = (quantised.double() - 128) * row_scale
    assert ((rounded - x.reshape(-1, 256)).abs() <= 0.501 * row_scale).all()
    expected = (rounded @ (weight.double() * scale).T + bias).view(*rows, 40)
    y = packed_int8.PackedInt8Weight().linear(x, [weight], [bias], [weight], [scale])
    assert y.dtype == dtype and y.shape == expected.shape
    torch.testing.assert_close(y.double(), expected, rtol=1e-5 if dtype == torch.float32 else 0.01, atol=0.5)


@needs_int8
def test_an_int8_weight_is_packed_again_when_it_is_replaced():
    layer, x, scale = packed_int8.PackedInt8Weight(), torch.ones(2, 64), torch.ones(1)
    ones, twos = (torch.full((8, 64), value, dtype=torch.int8) for value in (1, 2))
    assert (layer.linear(x, [ones], [None], [ones], [scale]) == 64).all()
    assert (layer.linear(x, [twos], [None], [twos], [scale]) == 128).all()
    together = layer.linear(x, [ones, twos], [None, None], [ones, twos], [scale, 2 * scale])
    assert (together == torch.tensor([64, 256]).repeat_interleave(8)).all()
    assert copy.deepcopy(layer).packed is None


@pytest.mark.parametrize("native,expected", [(True, torch.bfloat16), (False, torch.float32)])
def test_the_dtype_follows_the_processor(monkeypatch, native, expected):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": native}, raising=False)
    assert operations.compute_dtype(cpu, torch.bfloat16) == expected
    assert operations.compute_dtype(cpu, torch.float16) == operations.compute_dtype(cpu, torch.float32) == torch.float32
    assert operations.compute_dtype(torch.device("cuda"), torch.float16) == torch.float16


@pytest.mark.parametrize("name", ["ar-a", "flow-a"])
def test_a_packed_model_gives_the_results_of_a_plain_one(golden, name):
    pipe = janus_core.load(golden(name).folder, device="cpu", dtype=torch.float32)
    assert isinstance(pipe.model.language_model.lm_head, packed.Linear)
    plain = build_model(read_checkpoint(golden(name).folder), dtype=torch.float32)
    x = torch.randn(2, 20, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(pipe.model.llama(x), plain.llama(x), atol=1e-5)


def test_layers_are_packed_on_cpus_only():
    assert choose_operations(torch.device("cpu"), torch.float32) is packed
    assert choose_operations(torch.device("cuda"), torch.float32) is torch.nn


def test_float16_is_not_packed(golden):
    pipe = janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float16)
    assert not isinstance(pipe.model.language_model.lm_head, packed.Linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2])
def test_attention_in_blocks(dtype, rows):
    """Long masked passes skip keys that no query of a block sees; hidden pads stay hidden."""
    past, length = 20, attention.MIN_QUERIES_FOR_BLOCKS + 3
    torch.manual_seed(0)
    q = torch.randn(rows, 2, length, 16).to(dtype)
    k, v = (torch.randn(rows, 2, past + length, 16).to(dtype) for _ in range(2))
    visible = torch.ones(rows, past + length, dtype=torch.bool)
    visible[-1, 1:past] = False
    mask = causal_mask(length, past, dtype, q.device, visible)
    expected = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask.float())
    computed = attention.attention(q, k, v, mask)
    assert torch.allclose(computed.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_one_query(masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 1, 16), torch.randn(2, 3, 20, 16), torch.randn(2, 3, 16, 20).transpose(-1, -2)
    mask = attention.additive_mask(torch.rand(2, 1, 1, 20) > 0.4, q.dtype) if masked else None
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(attention.attention(q, k, v, mask), expected)
