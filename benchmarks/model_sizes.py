"""README's table of models: `python -m benchmarks.model_sizes` computes and writes it.

Counts the weights on the meta device, so that nothing is downloaded. The official files hold bfloat16 weights; the
SDXL VAE's holds float32.
"""

import re

import torch

from janus_core.checkpoint import WEIGHT_FORMATS
from janus_core.networks.llama import KVCache
from janus_core.vae import CONFIG as VAE_CONFIG

from . import ROOT, baselines
from .synthetic import weight_bytes

README = ROOT / "README.md"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
MODELS = {  # repository: the family and size of its weights
    "deepseek-ai/Janus-Pro-1B": ("ar", "1b"),
    "deepseek-ai/Janus-Pro-7B": ("ar", "7b"),
    "deepseek-ai/Janus-1.3B": ("ar", "1b"),
    "deepseek-ai/JanusFlow-1.3B": ("flow", "1b"),
}
LICENCE = "[DeepSeek](https://github.com/deepseek-ai/DeepSeek-LLM/blob/HEAD/LICENSE-MODEL)"
PROMPT = 64  # tokens


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def vae_bytes() -> int:
    """Bytes of sdxl_vae.safetensors: float32 weights."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(VAE_CONFIG))
    return 4 * sum(weight.numel() for weight in vae.parameters())


def cache_bytes(size: str) -> int:
    """Bytes of the keys and values of one image's two rows in bfloat16."""
    llama = baselines.llama_params(size)
    return KVCache.bytes(llama, 2, PROMPT + baselines.IMAGE_TOKENS, torch.bfloat16, torch.device("meta"))


def table() -> str:
    """The table, and the line below it, as Markdown."""
    formats = {"bf16": None, **{name.removesuffix("_e4m3fn"): name for name in WEIGHT_FORMATS}}
    lines = [
        f"| model | licence | download | {' | '.join(f'memory, {name}' for name in formats)} | images |",
        f"|---|---|---|{'---|' * len(formats)}---|",
    ]
    for repository, (family, size) in MODELS.items():
        memory = [gigabytes(weight_bytes(family, size, torch.bfloat16, name)) for name in formats.values()]
        link = f"[{repository.split('/')[1]}](https://huggingface.co/{repository})"
        lines.append(f"| {link} | {LICENCE} | {memory[0]} | {' | '.join(memory)} | 384x384 |")
    vae = gigabytes(vae_bytes())
    link = "[sdxl_vae.safetensors](https://huggingface.co/stabilityai/sdxl-vae) for JanusFlow"
    lines.append(f"| {link} | MIT | {vae} | {' | '.join([vae] * len(formats))} | |")
    small, large = (gigabytes(cache_bytes(size)) for size in ("1b", "7b"))
    lines += [
        "",
        "Sizes are computed from the weights, not measured (`python -m benchmarks.model_sizes`). Each image that is",
        f"being generated adds {small} of keys and values, {large} with the 7B model.",
    ]
    return "\n".join(lines)


def written(text: str) -> str:
    """A text with the table between its marks."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL)


def main():
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
