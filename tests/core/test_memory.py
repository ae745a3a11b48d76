"""Peak memory of loading a checkpoint of Janus-Pro-1B's size, kept in its file's dtype."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
def test_peak_memory(golden, tmp_path, kind):
    if shutil.disk_usage(tmp_path).free < 12e9:
        pytest.skip("needs 12 GB of disk")
    from safetensors.torch import load_file, save_file

    source = golden("ar-a").folder
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
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
