"""Runs one MODEL in ComfyUI's modules and prints what it found as JSON: DEVICE MODE FAMILY SIZE.

benchmarks/gpu/comfyui_runs.py starts this file with ComfyUI's Python and folder.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
DEVICE, MODE, FAMILY, SIZE = sys.argv[1:]
sys.path[:0] = [str(Path.cwd()), str(PACK)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
sys.argv = [sys.argv[0], *(["--cpu"] if DEVICE == "cpu" else [])]
import comfy.cli_args  # noqa: E402, F401  (reads them)

if DEVICE != "cpu":
    import main  # noqa: E402, F401  (sets the dynamic loader up)

import comfy.lora  # noqa: E402
import comfy.model_management as memory  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

from pack.janus_core.checkpoint import read_checkpoint  # noqa: E402
from pack.janus_core.sampling.settings import TokenSamplerSettings  # noqa: E402
from pack.nodes import loader_nodes, token_sampling  # noqa: E402
from pack.nodes.clip import make_clip  # noqa: E402

from benchmarks.synthetic import synthetic_checkpoint, synthetic_lora  # noqa: E402


def load():
    """(MODEL, a function that samples) of a checkpoint with random weights."""
    checkpoint = read_checkpoint(synthetic_checkpoint(FAMILY, SIZE))
    model = loader_nodes.make_patcher(checkpoint, "default")
    clip = make_clip(model, checkpoint)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a cat", "a blurry photo"))
    side = 4 if SIZE == "demo" else 12

    def sample(model=model):
        if FAMILY == "ar":
            latent = {"samples": torch.zeros(1, 8, side, side)}
            return token_sampling.sample(model, positive, negative, latent, TokenSamplerSettings(seed=3))["samples"]
        latent = torch.zeros(1, 4, 2 * side, 2 * side)
        noise = comfy.sample.prepare_noise(latent, 5)
        return comfy.sample.sample(model, noise, 8, 2.0, "euler", "simple", positive, negative, latent, seed=5)

    return model, sample


def same(a, b) -> bool:
    """Up to the rounding of another kernel, which may turn a few tokens."""
    return bool(((a - b).abs().flatten(2).amax(1) < 0.05 * b.abs().amax()).float().mean() > 0.95)


def cancelled(sample) -> bool:
    """Whether a run ends when the user has cancelled it."""
    memory.interrupt_current_processing(True)
    try:
        sample()
    except memory.InterruptProcessingException:
        return True
    finally:
        memory.interrupt_current_processing(False)
    return False


def check() -> dict:
    model, sample = load()
    if MODE == "dynamic, 2 GB":
        hold = memory.get_free_memory(model.load_device) - 2e9  # what another program would take
        held = torch.empty(int(max(0, hold)), dtype=torch.uint8, device=model.load_device)
    began = time.perf_counter()
    expected = sample()
    first = time.perf_counter() - began
    began = time.perf_counter()
    found = {"repeats": same(sample(), expected), "s": time.perf_counter() - began, "first_s": first}
    lora = comfy.utils.load_torch_file(str(synthetic_lora(FAMILY, SIZE)))
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    found["lora_changes"] = not torch.equal(sample(patched), expected)
    found["lora_off"] = same(sample(), expected)
    found["cancelled"] = cancelled(sample)
    found["after_cancel"] = same(sample(), expected)
    memory.unload_all_models()
    found["reloaded"] = same(sample(), expected)
    if MODE == "dynamic, 2 GB":
        del held
    if failed := [name for name, value in found.items() if value is False]:
        raise AssertionError(f"failed: {', '.join(failed)}")
    kernels = getattr(comfy.quant_ops, "_CK_AVAILABLE", None)
    return {**found, "patcher": type(model).__name__, "comfy_kitchen": bool(kernels)}


with torch.inference_mode():
    print(json.dumps(check()))
