"""Memory: peak use while loading a checkpoint, and what has to be on the GPU."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import janus_core
from janus_core.checkpoint.quantize import DECODER_LAYERS
from janus_core.janus import Janus, JanusParams
from janus_core.networks.cache import KVCache
from janus_core.networks.llama import LlamaParams
from janus_core.networks.siglip import SiglipParams
from janus_core.networks.vq import VQModel, VQParams

ROOT = Path(__file__).resolve().parents[2]
SIZE_1B = {
    "language": dict(hidden=2048, ffn=5632, layers=24, vocab=102400),
    "vision": dict(width=1024, layers=24, tokens=576),
}

MEASURE = """
import resource, sys, torch
from janus_core import load
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pipe = load(sys.argv[1], device="cpu")
total = sum(float(p.double().sum()) for p in pipe.model.parameters())  # touch every weight, so that mapped pages count
unit = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * unit)
"""


def full_size(golden_tensors):
    """Tensors of Janus-Pro-1B's shapes in bf16, from the names of a golden checkpoint."""
    lang, vis = SIZE_1B["language"], SIZE_1B["vision"]
    channels = [128, 128, 256, 256, 512]

    def shape(name, small):
        sizes = {96: lang["hidden"], 256: lang["ffn"], 640: lang["vocab"]}
        if name.startswith("language_model"):
            return [sizes[s] for s in small]
        if name.startswith("vision_model"):
            sizes = {
                128: vis["width"],
                384: 3 * vis["width"],
                512: 4 * vis["width"],
                256: 2 * vis["width"],
                36: vis["tokens"],
            }
            return [sizes.get(s, s) for s in small]
        if name.startswith("gen_vision_model"):
            if "quantize.embedding" in name:
                return [16384, 8]
            if "codebook_used" in name:
                return list(small)
            if any(part in name for part in ("quant_conv", "encoder.conv_out", "decoder.conv_in")):
                return [{32: 256, 128: 512}.get(s, s) for s in small]
            return [{32: channels[0], 64: channels[2], 128: channels[4]}.get(s, s) for s in small]
        sizes = {96: lang["hidden"], 128: vis["width"], 256: 16384}
        return [sizes.get(s, s) for s in small]

    out = {}
    for name, tensor in golden_tensors.items():
        repeats = [name]
        for stem, count in (
            ("language_model.model.layers.0.", lang["layers"]),
            ("vision_model.vision_tower.blocks.0.", vis["layers"]),
        ):
            if name.startswith(stem):
                repeats = [name.replace(".0.", f".{k}.", 1) for k in range(count)]
            elif name.startswith(stem[:-2]):
                repeats = []
        for full in repeats:
            out[full] = torch.full(shape(name, tensor.shape), 0.01, dtype=torch.bfloat16)
    return out


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_peak_memory_of_loading(golden, tmp_path, kind):
    if shutil.disk_usage(tmp_path).free < 12e9:
        pytest.skip("needs 12 GB of disk")
    from safetensors.torch import load_file, save_file

    source = golden("ar-a").folder
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "multi_modality", "gen_vision_config": {}}))
    tensors = full_size(load_file(source / "model.safetensors"))
    file = tmp_path / ("pytorch_model.bin" if kind == "bin" else "model.safetensors")
    torch.save(tensors, file) if kind == "bin" else save_file(tensors, file)
    size = file.stat().st_size
    del tensors
    assert 4.1e9 < size < 4.3e9
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    file.unlink()
    assert int(run.stdout) < 1.2 * size + 0.5e9


@pytest.mark.parametrize("name", ["ar-a", "flow-a"])
def test_weights_unused_in_generation_move_to_the_gpu_when_describing(golden, monkeypatch, name):
    """The meta device stands in for a GPU."""
    monkeypatch.setattr("janus_core.devices.DEVICES", ("meta",))
    pipe = janus_core.load(golden(name).folder, device="meta")
    parameters = dict(pipe.model.named_parameters())
    unused = {n for n in parameters if n.startswith(pipe.model.unused_in_generation)}
    assert unused and {n for n, p in parameters.items() if p.device.type == "cpu"} == unused
    assert all(getattr(branch, "embeds", branch).device.type == "meta" for branch in pipe.encode_prompt("a cat"))

    def devices(model, *args, **kwargs):
        assert {p.device.type for p in model.parameters()} == {"meta"}
        return iter([torch.tensor([[pipe.prompts.eos]])])

    monkeypatch.setattr("janus_core.pipeline_base.answer_steps", devices)
    assert pipe.describe(Image.new("RGB", (20, 20))) == [""]


def test_7b_in_8_bits_generates_in_less_than_9_gb():
    """Weights, VQ decoder, and the keys and values of one image with guidance, counted."""
    llama = LlamaParams(102400, 4096, 11008, layers=30, heads=32, kv_heads=32, head_dim=128)
    siglip = SiglipParams(width=1024, mlp_width=4096, layers=24, heads=16, patch_size=16, tokens=576)
    vq_params = VQParams(16384, 8, 256, (128, 128, 256, 256, 512))
    model = Janus(JanusParams(llama, siglip, vq_params, gen_head_width=4096), device="meta", dtype=torch.bfloat16)
    used = [(name, p) for name, p in model.named_parameters() if not name.startswith(model.unused_in_generation)]
    weights = sum(p.numel() * (1 if name.startswith(DECODER_LAYERS) and p.dim() == 2 else 2) for name, p in used)
    vq = 2 * sum(p.numel() for p in VQModel(vq_params, device="meta").parameters())
    cache = KVCache.bytes(llama, 2, 64 + 576, torch.bfloat16, "cuda")
    assert 6e9 < weights < 6.5e9 and weights + vq + cache < 7.5e9, (weights, vq, cache)  # 1.5 GB for activations
