"""A VAE with random weights in the layout of sdxl_vae.safetensors, for tests of loading and decoding."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = Path(__file__).resolve().parents[1] / "janus_core" / "sdxl_vae" / "config.json"

_RULES = [
    (r"^encoder\.down_blocks\.(\d)\.resnets\.(\d)\.", r"encoder.down.\1.block.\2."),
    (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"decoder.up.{3 - int(m[1])}.block.{m[2]}."),
    (r"^decoder\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"decoder.up.{3 - int(m[1])}.upsample."),
    (r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
]


def write_sdxl_vae(path: Path):
    """Writes the file and returns the diffusers model whose weights it holds."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIG.parent)).to(torch.bfloat16)
    out = {}
    for name, tensor in vae.state_dict().items():
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        if ".attn_1." in name and name.endswith("weight") and tensor.dim() == 2:
            tensor = tensor[..., None, None]
        out[name] = tensor.contiguous()
    save_file(out, path)
    return vae
