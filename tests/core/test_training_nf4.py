"""Frozen layers of 4 bits: the numbers, the gradient, and LoRAs trained over them."""

import pytest
import torch
import torch.nn.functional as F

from janus_core.training.memory_tracker import PeakMemory
from janus_core.training.nf4 import BLOCK, LEVELS, NF4Linear, quantize


def test_each_weight_gets_the_nearest_level_of_its_block():
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(0))
    weight[0, :BLOCK] = 0
    layer = NF4Linear(weight)
    blocks, scale = weight.view(-1, BLOCK, 1), quantize(weight)[1][:, :, None].float()
    nearest = (blocks - scale * torch.tensor(LEVELS)).abs().amin(-1)
    torch.testing.assert_close((layer.decoded(torch.float32) - weight).abs().view(-1, BLOCK), nearest)
    assert 8 * (layer.weight.nbytes + layer.scale.nbytes) == 4.25 * weight.numel()


def test_the_weights_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state)
    same = torch.isclose(NF4Linear(weight).decoded(torch.float32), theirs, rtol=2**-8, atol=0)
    assert same.float().mean() > 0.99, "rounded scales move only weights halfway between two levels"


@pytest.mark.parametrize("mixed", [False, True])
def test_the_gradient_is_that_of_the_decoded_weight(mixed):
    torch.manual_seed(0)
    layer, x = NF4Linear(torch.randn(48, 64)), torch.randn(2, 5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), PeakMemory() as memory:
        y = layer(x)
        held = memory.now
    gradient = torch.randn_like(y)
    y.backward(gradient)
    dtype = torch.bfloat16 if mixed else torch.float32
    weight = layer.decoded(dtype)
    assert y.dtype == dtype and held <= (x.numel() + y.numel()) * dtype.itemsize, "the decoded weight is freed"
    torch.testing.assert_close(y, F.linear(x.to(dtype), weight))
    torch.testing.assert_close(x.grad, (gradient @ weight).float())
    assert not any(p.requires_grad for p in layer.parameters())
