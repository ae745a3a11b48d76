"""The Triton decoder against the Llama itself, in Triton's interpreter where there is no GPU."""

import copy
import json
import os
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest
import torch

import janus_core
from janus_core.checkpoint import WEIGHT_FORMATS, build_model, quantized, read_checkpoint
from janus_core.networks.cache import KVCache
from janus_core.networks.llama import Llama, LlamaParams
from janus_core.operations.quantized import operations_over
from janus_core.sampling.graph_decode import PlainDecoder
from janus_core.triton_decoder import decoder

pytest.importorskip("triton", minversion="3.4", reason="needs a Triton whose interpreter is complete")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).resolve().parents[2]
KERNELS = "_qkv_kernel _attention_kernel _linear_residual_kernel _gate_up_kernel _linear_residual_kernel".split()
TOLERANCES = [(torch.float32, 1e-5), (torch.float16, 5e-3)]
TOLERANCES += [(torch.bfloat16, 4e-2)] if DEVICE == "cuda" else []  # the interpreter has no bfloat16 products

CASES = [(*case, kv_heads) for case in TOLERANCES for kv_heads in (2, 1)]
CASES = CASES if DEVICE == "cuda" else [CASES[0], CASES[3]]  # each dtype and number of heads once: it is interpreted


def random_llama(dtype, **params):
    llama = Llama(LlamaParams(**{**SMALL, **params}), dtype=dtype, device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    with torch.no_grad():
        for weight in llama.parameters():
            weight.normal_(float(weight.dim() == 1), 0.05, generator=generator)
    return llama


SMALL = dict(vocab_size=8, hidden_size=96, intermediate_size=160, layers=1, heads=2, kv_heads=2, head_dim=32)


@torch.inference_mode()
def run_both(llama, rows: int, dtype, steps: int = 2):
    """Hidden states of each step and the cache after them, by the network and by the kernels."""
    torch.manual_seed(1)
    filled = KVCache(llama.params, rows, 90, dtype, DEVICE)
    filled.keys, filled.values = (torch.randn_like(x).to(dtype) for x in (filled.keys, filled.values))
    starts = torch.arange(rows, device=DEVICE) * 3 % 7
    inputs = torch.randn(steps, rows, llama.params.hidden_size, device=DEVICE).to(dtype)
    results = []
    for kind in (PlainDecoder, decoder.TritonDecoder):
        cache = copy.deepcopy(filled)
        decode = kind(llama, cache, starts, starts)
        states = [decode(x, torch.tensor([63 + k], device=DEVICE)) for k, x in enumerate(inputs)]
        results.append((torch.stack(states), cache.keys, cache.values))
    return results


@pytest.mark.parametrize("rows", [1, 2, 20])
@pytest.mark.parametrize("dtype,tolerance,kv_heads", CASES)
def test_kernels_compute_what_the_network_does(rows, dtype, tolerance, kv_heads):
    expected, states = run_both(random_llama(dtype, kv_heads=kv_heads), rows, dtype)
    for a, b in zip(expected, states):
        assert (a - b).abs().max() <= tolerance * a.abs().max()


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_kernels_read_8_bit_weights(golden, larger_tiles, weights):
    checkpoint = quantized(read_checkpoint(golden("ar-a").folder), weights)
    model = build_model(checkpoint, operations_over(torch.nn), dtype=torch.float32, device=DEVICE)
    assert model.llama.layers[0].mlp.up_proj.weight.itemsize == 1
    model.llama.layers = model.llama.layers[1:2]  # Triton's interpreter is slow
    expected, states = run_both(model.llama, 2, torch.float32, steps=1)
    for a, b in zip(expected, states):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


@pytest.mark.parametrize("num_images", [1, 2])
def test_kernels_sample_the_same_tokens(golden, monkeypatch, caplog, larger_tiles, num_images):
    monkeypatch.setattr("janus_core.loading.choose_operations", lambda *_: torch.nn)  # float32 weights, as on a GPU
    pipe = janus_core.load(golden("ar-a").folder, device=DEVICE, dtype=torch.float32)
    pipe.model.llama.layers = pipe.model.llama.layers[:1]  # Triton's interpreter is slow
    settings = dict(num_images=num_images, seed=3, guidance_interval=(0.0, 0.6), negative_prompt="a blurry photo")
    settings["size"] = (32, 32)
    plain = pipe.generate_tokens("a cat", cuda_graphs=False, **settings)
    used = []

    class Counted(decoder.TritonDecoder):
        def __init__(self, *args):
            used.append(self)
            super().__init__(*args)

    monkeypatch.setattr(decoder, "TritonDecoder", Counted)
    monkeypatch.setattr(decoder, "usable", lambda llama, x: True)
    if DEVICE == "cpu":
        monkeypatch.setattr("janus_core.pipeline.capture_for", lambda device, enabled: lambda step: step)
    assert torch.equal(pipe.generate_tokens("a cat", cuda_graphs=True, triton=True, **settings), plain)
    assert not caplog.records, "the captured step was used"
    assert len(used) == 2  # with and without the unconditional rows


def test_what_the_kernels_support(monkeypatch):
    def usable(llama, rows=2, dtype=torch.bfloat16, capability=(8, 0)):
        monkeypatch.setattr(decoder, "_device_supported", lambda device: True)
        monkeypatch.setattr(decoder, "capability", lambda device: capability)
        return decoder.usable(llama, torch.zeros(rows, 96, dtype=dtype, device=DEVICE))

    llama = random_llama(torch.bfloat16)
    assert usable(llama) and not usable(llama, rows=65) and not usable(llama, dtype=torch.float16)
    assert not usable(random_llama(torch.float16)) and not usable(random_llama(torch.bfloat16, head_dim=48))
    assert not usable(random_llama(torch.bfloat16, hidden_size=136))
    assert not usable(random_llama(torch.bfloat16, intermediate_size=168))
    weight = llama.layers[0].mlp.up_proj.weight
    weight.data = weight.data.T.contiguous().T
    assert not usable(llama)
    weight.data = weight.data.contiguous()
    assert usable(llama)
    llama.layers[0].mlp.up_proj = torch.nn.Sequential(llama.layers[0].mlp.up_proj)  # as LoRA adapters wrap layers
    assert not usable(llama)

    llama = random_llama(torch.bfloat16, layers=2)
    *others, last = [layer for layer in llama.layers.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in (*others, last):
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    for layer in others:
        layer.scale = torch.ones(len(layer.weight), device=DEVICE)
    assert not usable(llama, capability=(9, 0))  # one layer has no scale
    last.scale = torch.ones(1, device=DEVICE)
    assert usable(llama, capability=(8, 9)) and not usable(llama)
    last.weight = torch.nn.Parameter(last.weight.to(torch.int8), requires_grad=False)
    assert not usable(llama, capability=(9, 0))  # two dtypes
    monkeypatch.undo()
    assert DEVICE == "cuda" or not decoder.usable(
        random_llama(torch.bfloat16), torch.zeros(2, 96, dtype=torch.bfloat16)
    )


class BrokenTriton(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            raise OSError("DLL load failed while importing libtriton")


def test_a_broken_triton_is_reported_once(monkeypatch, caplog):
    """As on Windows, where a DLL of another version makes `import triton` fail."""
    monkeypatch.setattr(decoder, "capability", lambda device: (9, 0))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(sys, "meta_path", [BrokenTriton(), *sys.meta_path])
    decoder.triton_version.cache_clear()
    try:
        for _ in range(2):
            assert not decoder._device_supported(torch.device("cuda", 0))
    finally:
        decoder.triton_version.cache_clear()
    (record,) = caplog.records
    assert "DLL load failed" in record.getMessage()


def test_kernels_compile_for_gpus(tmp_path):
    """For Ampere, Ada and Hopper, within 99 KiB of shared memory, the smallest limit among them."""
    pytest.importorskip("triton.backends.nvidia")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env.update(PYTHONPATH=str(ROOT), TRITON_CACHE_DIR=str(tmp_path))
    script = ROOT / "tests" / "core" / "compile_kernels.py"
    options = {"env": env, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    halves = [
        subprocess.Popen([sys.executable, script, *targets], **options)
        for targets in (["86:bf16,int8", "89:fp8"], ["90:bf16,int8,fp8"])  # Ada differs from Ampere in fp8 alone
    ]
    report = []
    for half in halves:
        output, errors = half.communicate()
        assert half.returncode == 0, errors[-2000:]
        report += json.loads(output)
    assert len(report) == 3 * 6 and {r["rows"] for r in report} == {1, 2, 32}
    for r in report:
        assert [name for name, _ in r["kernels"]] == KERNELS
        assert max(shared for _, shared in r["kernels"]) <= 99 * 1024
