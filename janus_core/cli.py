"""python -m janus_core: generate, describe, download, train, convert."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from . import __version__, pipeline
from .checkpoint import WEIGHT_FORMATS, check_checkpoint, quantized, read_checkpoint, save_single_file
from .download import CHECKPOINTS, download_checkpoint, download_vae, models_folder
from .errors import DownloadError, JanusError, is_out_of_memory
from .files import check_output, os_reason
from .image import open_image, write_image

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    width, _, height = text.lower().partition("x")
    return int(width), int(height)


def setting(text: str) -> tuple[str, object]:
    """KEY=VALUE, the value in JSON or else a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(text)
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m janus_core", description="Janus, Janus-Pro and JanusFlow.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name, function, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    def model_arguments(sub):
        sub.add_argument("--model", required=True, help="checkpoint folder or single .safetensors file")
        sub.add_argument("--device", help="cpu, cuda, mps; the best there is by default")
        sub.add_argument("--dtype", choices=DTYPES, help="of weights and arithmetic; the file's by default")
        sub.add_argument("--weights", choices=WEIGHT_FORMATS, help="store the language model's weights in 8 bits")
        sub.add_argument("--seed", type=int, default=0)

    sub = command("generate", generate, "Generate images of a prompt.")
    sub.add_argument("prompt")
    model_arguments(sub)
    sub.add_argument("--out", type=Path, default=Path("janus.png"), help="PNG file; numbered when --count is over 1")
    sub.add_argument("--negative", default="", help="what the image should not show")
    sub.add_argument("--count", type=int, default=1, help="number of images")
    sub.add_argument("--size", type=size, help="WIDTHxHEIGHT in pixels; the model's own by default")
    sub.add_argument("--cfg", type=float, help="guidance: 5 for Janus-Pro and 2 for JanusFlow by default")
    ar = sub.add_argument_group("Janus and Janus-Pro")
    ar.add_argument("--temperature", type=float, help="1 by default; 0 is greedy")
    ar.add_argument("--top-k", type=int)
    ar.add_argument("--top-p", type=float)
    flow = sub.add_argument_group("JanusFlow")
    flow.add_argument("--vae", help="SDXL VAE: a diffusers folder or sdxl_vae.safetensors")
    flow.add_argument("--steps", type=int, help="30 by default")
    flow.add_argument("--image", help="image to start from, with --denoise below 1")
    flow.add_argument("--denoise", type=float, help="1 by default")

    sub = command("describe", describe, "Answer a question about images.")
    sub.add_argument("image", nargs="+", help="image files; each gets an answer")
    sub.add_argument("question")
    model_arguments(sub)
    sub.add_argument("--together", action="store_true", help="ask once about all the images")
    sub.add_argument("--max-new-tokens", type=int, default=512)
    sub.add_argument("--temperature", type=float, default=0.0, help="0 (greedy) by default")
    sub.add_argument("--top-p", type=float, default=0.95)

    sub = command("download", download, "Fetch an official checkpoint from the Hugging Face hub.")
    sub.add_argument("name", nargs="?", choices=CHECKPOINTS)
    sub.add_argument("--vae", action="store_true", help="fetch the SDXL VAE, which JanusFlow's images need")
    sub.add_argument("--to", type=Path, help="models folder; ComfyUI's, or ./models, by default")

    sub = command("train", train, "Fine-tune a checkpoint on a folder of captioned images.")
    sub.add_argument("--config", required=True, help="JSON file, see janus_core/training/configs/finetune.json")
    sub.add_argument("--folder", help="folder of the run, which is resumed from there; the config's by default")
    sub.add_argument(
        "--set",
        metavar="KEY=VALUE",
        type=setting,
        action="append",
        default=[],
        help="overrides a setting of the config",
    )

    sub = command("convert", convert, "Convert a checkpoint folder to one .safetensors file.")
    sub.add_argument("model", help="checkpoint folder, in the original or the transformers layout")
    sub.add_argument("out", help="file to write; ComfyUI looks in models/janus")
    sub.add_argument("--weights", choices=WEIGHT_FORMATS, help="store the language model's weights in 8 bits")
    return top


class Progress:
    """A progress bar that a pipeline reports to."""

    def __init__(self, unit: str):
        self.bar = tqdm(unit=unit)

    def __call__(self, done: int, total: int):
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()


def load(args, **kwargs):
    return pipeline.load(
        args.model, device=args.device, dtype=DTYPES.get(args.dtype), weight_dtype=args.weights, **kwargs
    )


def generate(args):
    check_output(args.out)
    pipe = load(args, vae=args.vae)
    common = {
        "negative_prompt": args.negative,
        "num_images": args.count,
        "seed": args.seed,
        "size": args.size,
        "guidance": args.cfg,
    }
    tokens = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    steps = {"steps": args.steps, "denoise": args.denoise}
    is_flow = isinstance(pipe, pipeline.JanusFlowPipeline)
    own, foreign = (steps, tokens) if is_flow else (tokens, {**steps, "image": args.image, "vae": args.vae})
    given = [name for name, value in foreign.items() if value is not None]
    if given:
        raise JanusError(f"--{given[0].replace('_', '-')} is not for {pipe.model.family}.")
    if is_flow and pipe.vae is None:
        raise JanusError("JanusFlow needs the SDXL VAE for images: name it with --vae.")
    if args.image and (args.denoise is None or args.denoise >= 1):
        raise JanusError("--image needs a --denoise below 1, which says how much of the image changes.")
    settings = {name: value for name, value in {**common, **own}.items() if value is not None}
    if args.image:
        settings["latents"] = pipe.encode(open_image(args.image))
    with Progress("step" if is_flow else "token") as progress:
        images = pipe(args.prompt, callback=progress, **settings)
    settings.pop("latents", None)
    metadata = {"prompt": args.prompt, "model": str(args.model), "image": args.image, **settings}
    count, out = len(images), args.out
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}_{k:03}") for k in range(count)]
    for k, (path, image) in enumerate(zip(paths, images)):
        write_image(image, path, {**metadata, "index": k})
    for path in paths:  # after all are saved: whoever reads these lines may stop
        print(path)


def describe(args):
    pipe = load(args)
    images = [open_image(path) for path in args.image]
    with Progress("token") as progress:
        answers = pipe.describe(
            [images] if args.together else images,
            args.question,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed,
            callback=progress,
        )
    for path, answer in zip(args.image, answers):
        print(answer.strip() if len(answers) == 1 else f"{path}: {answer.strip()}")


def convert(args):
    checkpoint = read_checkpoint(args.model)
    check_checkpoint(checkpoint)
    if args.weights:
        checkpoint = quantized(checkpoint, args.weights)
    save_single_file(checkpoint, args.out)
    print(f"{args.out}: {len(checkpoint.tensors)} tensors, family {checkpoint.family}")


def download(args):
    if not args.name and not args.vae:
        raise DownloadError(f"Say what to download: {', '.join(CHECKPOINTS)}, or --vae.")
    models = args.to or models_folder()
    if args.name:
        print(download_checkpoint(args.name, models))
    if args.vae:
        print(download_vae(models))


def train(args):
    from . import training  # needs accelerate, which nothing else here does

    print(training.run(args.config, args.folder, dict(args.set)))


def main(argv=None) -> int:
    """Runs the command line; an expected error becomes one line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # terminals that lack a character
    args = parser().parse_args(argv)
    try:
        args.function(args)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the output any more; the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _message(error: Exception) -> str | None:
    """The line for an error that a user can act on; None for a bug."""
    if isinstance(error, JanusError):
        return " ".join(str(error).split())
    if is_out_of_memory(error):
        return "out of memory: use a smaller --count or --size, or --dtype bf16."
    if isinstance(error, OSError):
        return f"{error.filename}: {os_reason(error)}." if error.filename else f"{os_reason(error)}."
    return None
