"""What each weight format costs in exactness, on the demo checkpoint of Janus-Pro: python -m benchmarks.weight_formats.

The error is that of the prompts' hidden states, relative to unquantised weights; the scores are the pixel judge's (see
demo/recipe/quality.py). int4 needs comfy-kitchen. Its rotation is 256 inputs wide, which the demo's layers do not fill
everywhere; the rotation of 64 that is the default here puts all of them into 4 bits.
"""

import argparse
import tempfile
from pathlib import Path

import torch

import janus_core
from demo.recipe.quality import AR, generate, prompts, scores, table
from janus_core.checkpoint import WEIGHT_CHOICES, quantized, read_checkpoint, save_single_file

from . import report
from .speed import relative_error


def pipeline(weight_dtype: str | None, rotation: int):
    """The demo's pipeline in float32, with its weights in a format as `janus_core convert` writes it, or as they are.

    Args:
        rotation: of int4, in inputs.
    """
    if weight_dtype is None:
        return janus_core.load(AR, device="cpu", dtype=torch.float32)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / f"{weight_dtype}.safetensors"
        save_single_file(quantized(read_checkpoint(AR), weight_dtype, rotation=rotation), path)
        return janus_core.load(path, device="cpu", dtype=torch.float32)


@torch.inference_mode()
def states(pipe, asked) -> torch.Tensor:
    """The last hidden states of the prompts, float32 [prompts, hidden]."""
    rows = [pipe.model.llama(pipe.encode_prompt(text)[0])[0, -1] for _, text in asked]
    return torch.stack(rows).float()


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_formats", description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="prompts")
    parser.add_argument("--rotation", type=int, default=64, help="of int4, in inputs")
    parser.add_argument("--formats", nargs="+", choices=WEIGHT_CHOICES, default=list(WEIGHT_CHOICES))
    parser.add_argument("--out", type=Path, help="Markdown file")
    args = parser.parse_args()
    asked, rows, expected = prompts(args.count), {}, None
    for name in (None, *args.formats):
        pipe = pipeline(name, args.rotation)
        found = states(pipe, asked)
        expected = found if expected is None else expected
        rows[f"{name or 'float32'}, error {relative_error(found, expected):.4f}"] = scores(generate(pipe, asked), asked)
        print(list(rows)[-1], flush=True)
    text = f"{report.header(report.run_info(torch.device('cpu')))}\n\n{args.count} prompts of the demo, percent right; "
    text += f"int4 with rotations of {args.rotation} inputs.\n\n{table(rows)}\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
