"""Packed linear layers and blockwise attention on a CPU give the results of the plain ones."""

import pytest
import torch

import janus_core
from janus_core import attention
from janus_core.checkpoint import build_model, read_checkpoint
from janus_core.networks.llama import causal_mask
from janus_core.operations import choose_operations, packed


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
        assert layer.weight is None and y.dtype == dtype
        assert torch.allclose(layer(x).float(), expected, atol=2e-5 if dtype == torch.float32 else 0.05)


def test_gradients_use_the_plain_weight():
    layer = packed.Linear(8, 8)
    layer(torch.ones(1, 8)).sum().backward()
    assert layer.weight.grad is not None and layer.packed is None


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
