"""python -m janus_core: generate, edit, describe, batch, serve, download, train, convert, doctor."""

import argparse
import json
import os
import sys
from pathlib import Path

from . import __version__
from .batch.cli import add_commands as add_batch
from .checkpoint import check_checkpoint, quantized, read_checkpoint, save_single_file, with_loras
from .cli_generate import edit, generate, load
from .cli_options import (
    Progress,
    examples,
    given,
    model_arguments,
    question_arguments,
    size,
    token_arguments,
    weight_arguments,
)
from .devices import usable_device
from .download import CHECKPOINTS, download_checkpoint, download_vae, models_folder
from .errors import DownloadError, JanusError, TrainingError, is_out_of_memory
from .files import os_reason
from .finetunes.think import RECIPES
from .image import open_image
from .questions import question_for
from .serve.cli import add_command as add_serve


def setting(text: str) -> tuple[str, object]:
    """KEY=VALUE, the value in JSON or else a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(text)
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


EXAMPLES = {  # of each command, shown below its help
    "generate": """\
  python -m janus_core generate "a lighthouse at dusk" --model models/janus/Janus-Pro-1B --count 4 --seed 7
  python -m janus_core generate "a lighthouse at dusk" --model models/janus/JanusFlow-1.3B --vae sdxl_vae.safetensors
  python -m janus_core generate "the same at night" --model models/janus/JanusFlow-1.3B --vae sdxl_vae.safetensors \\
      --image dusk.png --denoise 0.6
  python -m janus_core generate "a cat on a red chair" --model models/janus/T2I-R1 --think t2i-r1""",
    "edit": """\
  python -m janus_core edit cat.png "make the cat black" --model models/janus/Janus-4o-7B --out black.png""",
    "describe": """\
  python -m janus_core describe photo.png "What is in this image?" --model models/janus/Janus-Pro-1B
  python -m janus_core describe left.png right.png "What differs?" --together --model models/janus/Janus-Pro-7B""",
    "download": """\
  python -m janus_core download janus-pro-1b
  python -m janus_core download janusflow-1.3b --vae --to ComfyUI/models""",
    "train": """\
  python -m janus_core train --config my-finetune.json
  python -m janus_core train --config my-finetune.json --set loop.steps=2000 --folder runs/second""",
    "doctor": """\
  python -m janus_core doctor
  python -m janus_core doctor --device cpu""",
    "convert": """\
  python -m janus_core convert models/janus/Janus-Pro-7B Janus-Pro-7B-int8.safetensors --weights int8""",
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m janus_core", description="Janus, Janus-Pro and JanusFlow.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True)

    def command(function, text):
        name = function.__name__
        sub = commands.add_parser(name, help=text, description=text, **examples(EXAMPLES[name]))
        sub.set_defaults(function=function)
        return sub

    generate_arguments(command(generate, "Generate images from a prompt."))
    edit_arguments(command(edit, "Edit an image as an instruction says, with Janus-4o."))
    describe_arguments(command(describe, "Answer a question about images."))
    add_batch(commands)
    add_serve(commands)
    download_arguments(command(download, "Fetch an official checkpoint from the Hugging Face hub."))
    train_arguments(command(train, "Fine-tune a checkpoint on a folder of captioned images."))
    sub = command(doctor, "Print what a bug report needs: versions, devices, self-tests, checkpoints.")
    sub.add_argument("--device", help="device of the self-tests; the best there is by default")
    convert_arguments(command(convert, "Convert a checkpoint folder to one .safetensors file."))
    return top


def image_arguments(sub):
    sub.add_argument("--out", type=Path, default=Path("janus.png"), help="PNG file; numbered for several images")
    sub.add_argument("--negative", default="", help="what guidance moves away from; empty as in the papers")
    sub.add_argument("--count", type=int, default=1, help="number of images")
    sub.add_argument("--size", type=size, help="WIDTHxHEIGHT in pixels; the model's own by default")
    sub.add_argument("--cfg", type=float, help="guidance: 5 for Janus-Pro and 2 for JanusFlow by default; 1 is off")
    sub.add_argument(
        "--cfg-start",
        type=float,
        help="guidance starts here: a fraction of the tokens, or of the path from noise; 0 by default",
    )
    sub.add_argument("--cfg-end", type=float, help="guidance ends here, likewise; 1 by default")


def generate_arguments(sub):
    sub.add_argument("prompt", help="the image to generate, in plain language")
    model_arguments(sub)
    image_arguments(sub)
    ar = sub.add_argument_group("Janus and Janus-Pro")
    token_arguments(ar)
    ar.add_argument("--system-prompt", help="text in front of the chat; none by default")
    tuned = sub.add_argument_group("models fine-tuned from Janus-Pro (docs/finetunes.md)")
    tuned.add_argument("--think", metavar="RECIPE", choices=RECIPES, help=f"write a plan first: {', '.join(RECIPES)}")
    tuned.add_argument("--reflect", type=int, metavar="N", help="check the image and generate it again, up to N times")
    tuned.add_argument("--text-temperature", type=float, help="temperature of the plan and the check; 1 by default")
    tuned.add_argument("--max-new-tokens", type=int, help="longest plan or check, in tokens; the recipe's by default")
    flow = sub.add_argument_group("JanusFlow")
    flow.add_argument("--vae", help="SDXL VAE: a diffusers folder or sdxl_vae.safetensors")
    flow.add_argument("--steps", type=int, help="Euler steps; 30 by default")
    flow.add_argument("--image", help="image to start from, with --denoise below 1")
    flow.add_argument("--denoise", type=float, help="how much of --image changes, from 0 to 1; 1 by default")


def edit_arguments(sub):
    sub.add_argument("image", help="image file to change")
    sub.add_argument("prompt", help="what to change")
    model_arguments(sub)
    image_arguments(sub)
    token_arguments(sub)
    text = "how far the result may depart from the image: 0 stays closest; 5 by default"
    sub.add_argument("--image-guidance", type=float, help=text)


def describe_arguments(sub):
    sub.add_argument("image", nargs="+", help="image files; each gets an answer")
    sub.add_argument("question", help="what to ask about them, or what to do with them")
    model_arguments(sub)
    sub.add_argument("--together", action="store_true", help="ask once about all the images")
    sub.add_argument("--max-new-tokens", type=int, default=512, help="the longest answer, in tokens; 512 by default")
    sub.add_argument("--temperature", type=float, default=0.0, help="0 (greedy) by default")
    sub.add_argument("--top-k", type=int, default=0, help="sample from the k most likely tokens; 0, off, by default")
    text = "sample from the most likely tokens of this probability; 0.95 by default"
    sub.add_argument("--top-p", type=float, default=0.95, help=text)
    question_arguments(sub)


def download_arguments(sub):
    sub.add_argument("name", nargs="?", choices=CHECKPOINTS, help="checkpoint to fetch into models/janus")
    sub.add_argument("--vae", action="store_true", help="fetch the SDXL VAE, which JanusFlow's images need")
    sub.add_argument("--to", type=Path, help="models folder; ComfyUI's, or ./models, by default")


def train_arguments(sub):
    sub.add_argument("--config", required=True, help="JSON file, see janus_core/training/configs/finetune.json")
    sub.add_argument("--folder", help="folder of the run, which is resumed from there; the config's by default")
    set_argument(sub)
    sub.add_argument("--estimate", action="store_true", help="print the memory that the config needs, and do not train")
    sub.add_argument("--memory", type=float, metavar="GB", help="with --estimate: refuse a config that needs more")
    sub.add_argument("--gpus", type=int, default=1, help="with --estimate: over how many GPUs FSDP shards the model")


def set_argument(sub):
    text = "overrides a setting of the config; KEY may be in a section: loop.steps"
    sub.add_argument("--set", metavar="KEY=VALUE", type=setting, action="append", default=[], help=text)


def convert_arguments(sub):
    sub.add_argument("model", help="checkpoint folder, in the original or the transformers layout")
    sub.add_argument("out", help="file to write; ComfyUI looks in models/janus")
    weight_arguments(sub)


def describe(args):
    pipe = load(args)
    images = [open_image(path) for path in args.image]
    with Progress("token") as progress:
        answers = pipe.describe(
            [images] if args.together else images,
            question_for(args.question, args.answer, args.option),
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            callback=progress,
            **given({"roles": args.roles, "system_prompt": args.system_prompt}),
        )
    for path, answer in zip(args.image, answers):
        print(answer.strip() if len(answers) == 1 else f"{path}: {answer.strip()}")


def convert(args):
    checkpoint = read_checkpoint(args.model)
    check_checkpoint(checkpoint)
    checkpoint = with_loras(checkpoint, args.lora)
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

    if not args.estimate and (args.memory is not None or args.gpus != 1):
        raise TrainingError("--memory and --gpus belong to --estimate, which does not train: add it or omit them.")
    if args.estimate:
        print(training.estimate(args.config, dict(args.set), args.memory, args.gpus))
    else:
        print(training.run(args.config, args.folder, dict(args.set)))


def doctor(args):
    from .doctor import report  # imports most of the package

    print(report(usable_device(args.device)))


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
        message = _message(error, args.function is train)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _message(error: Exception, training: bool = False) -> str | None:
    """The line for an error that a user can act on; None for a bug."""
    if isinstance(error, JanusError):
        return " ".join(str(error).split())
    if is_out_of_memory(error) and training:
        return "out of memory: `train --estimate --memory GB` shows what needs it, and what would fit."
    if is_out_of_memory(error):
        return "out of memory: use a smaller --count or --size, or --dtype bf16."
    if isinstance(error, OSError):
        return f"{error.filename}: {os_reason(error)}." if error.filename else f"{os_reason(error)}."
    return None
