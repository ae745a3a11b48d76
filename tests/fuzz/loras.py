"""Fuzz cases of LoRAs: damaged files, tensors that do not fit, and configs of peft that mean something else."""

import hashlib
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from janus_core.checkpoint import with_loras
from janus_core.schema import shown

from .case import NOT_NUMBERS, OK, REFUSED, SAME, Case, flip, pick
from .models import FAMILIES, tiny

LAYERS = [f"language_model.model.layers.{k}.{name}" for k in range(3) for name in ("self_attn.q_proj", "mlp.up_proj")]
LAYOUTS = {  # how a layer's keys begin, and the names of its matrices
    "comfyui": ("diffusion_model.", "lora_A.weight", "lora_B.weight"),
    "peft": ("base_model.model.", "lora_A.weight", "lora_B.weight"),
    "plain": ("", "lora_down.weight", "lora_up.weight"),
}
RANK = 2
DTYPES = (torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64)
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "use_dora": False}


def make(rng: random.Random, work: Path) -> Case:
    checkpoint = tiny(pick(rng, FAMILIES))
    layout = pick(rng, sorted(LAYOUTS))
    generator = torch.Generator().manual_seed(0)
    prefix, down, up = LAYOUTS[layout]
    tensors = {}
    for layer in LAYERS:
        out, inputs = checkpoint.tensors[f"{layer}.weight"].shape
        tensors[f"{prefix}{layer}.{down}"] = torch.randn(RANK, inputs, generator=generator)
        tensors[f"{prefix}{layer}.{up}"] = torch.randn(out, RANK, generator=generator)
        if layout != "peft":
            tensors[f"{prefix}{layer}.alpha"] = torch.tensor(4.0)
    folder = work / "lora"
    folder.mkdir(parents=True)
    config, changes = dict(CONFIG), [values, values, raw, strength]
    kind = pick(rng, [*changes, peft_config] if layout == "peft" else changes)
    baseline = merged(checkpoint, [write(folder, tensors, config)])
    label, loras, expected = kind(folder, tensors, config, rng)
    return Case(f"{kind.__name__} of {layout}: {label}", lambda: merged(checkpoint, loras), expected, baseline)


def write(folder: Path, tensors: dict, config: dict) -> Path:
    """The path to load: the file, or the folder if peft's names are in it."""
    is_peft = any(name.startswith("base_model.") for name in tensors)
    file = folder / ("adapter_model.safetensors" if is_peft else "lora.safetensors")
    file.write_bytes(to_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()}))
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder if is_peft else file


def merged(checkpoint, loras) -> str:
    """A hash of the merged weights."""
    total = hashlib.sha256()
    for name, tensor in with_loras(checkpoint, loras).tensors.items():
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def values(folder, tensors, config, rng):
    """One tensor of another dtype, shape or value, missing, renamed or additional."""
    name = pick(rng, sorted(n for n in tensors if not n.endswith(".alpha")))
    tensor, layer = tensors[name], name.partition(".lora")[0]
    action = pick(
        rng, ("dtype", "flatten", "empty", "scalar", "grow", "drop", "rename", "extra", "not finite", "alpha")
    )
    if action == "dtype":
        tensors[name] = tensor.to(pick(rng, DTYPES))
    elif action == "flatten":
        tensors[name] = tensor.flatten()
    elif action == "empty":
        tensors[name] = tensor[:0]
    elif action == "scalar":
        tensors[name] = torch.tensor(1.0)
    elif action == "grow":
        tensors[name] = torch.cat((tensor, tensor[-1:]))
    elif action == "drop":
        del tensors[name]
    elif action == "rename":
        tensors["base_model.x." + pick(rng, ("\u0660", " ", "a" * 3000, name.replace(".0.", ".99."), "."))] = tensor
        del tensors[name]
    elif action == "extra":
        extra = pick(rng, ("dora_scale", "diff", "diff_b", "lora_mid.weight", "lokr_w1", "hada_w1_a", "alpha.x", ""))
        tensors[f"{layer}.{extra}"] = torch.ones(pick(rng, ((), (3,), (0,))))
    elif action == "not finite":
        tensors[name] = tensor * pick(rng, (float("nan"), float("inf"), 1e38))
    else:
        tensors[f"{layer}.alpha"] = pick(rng, (torch.tensor(float("nan")), torch.ones(2), torch.tensor(1e30)))
    return f"{action} {name[:60]}", [write(folder, tensors, config)], (REFUSED,)


def raw(folder, tensors, config, rng):
    """Damaged bytes of the file."""
    path = write(folder, tensors, config)
    file = next(folder.glob("*.safetensors"))
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    action = pick(rng, ("flip", "cut", "other", "empty"))
    if action == "flip":  # a changed name may still be one of another layout
        file.write_bytes(flip(rng, data, 0, header))
        return action, [path], (REFUSED, OK)
    content = {"cut": data[: rng.randrange(len(data))], "other": rng.randbytes(2000), "empty": b""}[action]
    file.write_bytes(content)
    return action, [path], (REFUSED,)


def strength(folder, tensors, config, rng):
    """Strengths and lists of LoRAs that are none."""
    path = write(folder, tensors, config)
    if rng.random() < 0.3:
        return "two halves", [(path, 0.5), [str(path), 0.5]], (OK,)
    if rng.random() < 0.3:
        return "a list", pick(rng, ([5], [None], [(path, 1, 1)], 5, None, [[]], {"a": 1}, [b"x"])), (REFUSED,)
    value = pick(rng, (*NOT_NUMBERS, 101, -101.0))
    return f"strength {shown(value)[:20]}", [(path, value)], (REFUSED,)


def peft_config(folder, tensors, config, rng):
    """Fields of adapter_config.json."""
    key = pick(rng, ("peft_type", "r", "lora_alpha", "use_dora", "use_rslora", "alpha_pattern", "bias", "unread"))
    wrong = [value for value in NOT_NUMBERS if value not in ("", [], {}, "\ud800") and value is not True]
    wrong = [value for value in wrong if value is not None and not (isinstance(value, int) and value > 10**9)]
    if key == "alpha_pattern":
        config[key] = pick(rng, ({"(a+)+$": 1}, {"q_proj": "x"}, [1], "x", {"q_proj": float("nan")}))
    elif key == "use_rslora":
        config[key] = pick(rng, ("yes", 1, [], 0.5))
    else:
        config[key] = pick(rng, wrong)
    return key, [write(folder, tensors, config)], (SAME,) if key == "unread" else (REFUSED,)
