"""README's table of models: `python -m benchmarks.model_sizes` computes and writes it.

Counts the weights on the meta device, so that nothing is downloaded. The official files hold bfloat16 weights; the
SDXL VAE's holds float32.
"""

import re

import torch

from janus_core.vae import CONFIG as VAE_CONFIG

from . import ROOT
from .memory_table import counted

README = ROOT / "README.md"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
MODELS = {  # repository: the family and size of its weights
    "deepseek-ai/Janus-Pro-1B": ("ar", "1b"),
    "deepseek-ai/Janus-Pro-7B": ("ar", "7b"),
    "deepseek-ai/Janus-1.3B": ("ar", "1b"),
    "deepseek-ai/JanusFlow-1.3B": ("flow", "1b"),
}
LICENCE = "[DeepSeek](https://github.com/deepseek-ai/DeepSeek-LLM/blob/HEAD/LICENSE-MODEL)"
FORMATS = {"bf16": "bf16", "int8": "int8", "fp8": "int8", "int4": "int4"}  # titles: as memory_table counts them


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def vae_bytes() -> int:
    """Bytes of sdxl_vae.safetensors: float32 weights."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(VAE_CONFIG))
    return 4 * sum(weight.numel() for weight in vae.parameters())


def table() -> str:
    """The table, and the line below it, as Markdown."""
    lines = [
        f"| model | licence | download | {' | '.join(f'memory, {name}' for name in FORMATS)} | images |",
        f"|---|---|---|{'---|' * len(FORMATS)}---|",
    ]
    for repository, (family, size) in MODELS.items():
        memory = [gigabytes(counted(family, size, stored)["file"]) for stored in FORMATS.values()]
        link = f"[{repository.split('/')[1]}](https://huggingface.co/{repository})"
        lines.append(f"| {link} | {LICENCE} | {memory[0]} | {' | '.join(memory)} | 384x384 |")
    vae = gigabytes(vae_bytes())
    link = "[sdxl_vae.safetensors](https://huggingface.co/stabilityai/sdxl-vae) for JanusFlow"
    lines.append(f"| {link} | MIT | {vae} | {' | '.join([vae] * len(FORMATS))} | |")
    small, large = (gigabytes(counted("ar", size, "bf16")["cache 1"]) for size in ("1b", "7b"))
    lines += [
        "",
        "Sizes are computed from the weights, not measured (`python -m benchmarks.model_sizes`). Each image that is",
        f"being generated adds {small} of keys and values, {large} with the 7B model (with JanusFlow hardly any). What",
        "stays on a GPU while images are generated is less: [docs/memory.md](docs/memory.md).",
    ]
    return "\n".join(lines)


def written(text: str) -> str:
    """A text with the table between its marks."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL)


def main():
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
