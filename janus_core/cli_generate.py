"""The commands generate and edit."""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from . import loading
from .checkpoint import WEIGHT_CHOICES
from .errors import JanusError
from .files import check_output, write_text
from .image import open_image, write_image
from .pipeline import JanusFlowPipeline, JanusPipeline
from .prompt import ROLES
from .questions import ANSWERS

TITLES = {"janus": "Janus and Janus-Pro", "janusflow": "JanusFlow"}  # of the families
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    width, _, height = text.lower().partition("x")
    return int(width), int(height)


def examples(lines: str) -> dict:
    """The arguments of add_parser that show examples below a command's help."""
    return {"epilog": f"examples:\n{lines}", "formatter_class": argparse.RawDescriptionHelpFormatter}


def lora(text: str) -> tuple[str, float]:
    """FILE or FILE:STRENGTH."""
    path, colon, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if colon else (text, 1.0)
    except ValueError:  # a colon in the name
        return text, 1.0


def weight_arguments(sub):
    """The options of what becomes of a checkpoint's weights."""
    sub.add_argument("--weights", choices=WEIGHT_CHOICES, help="store the language model's weights in 8 or 4 bits")
    text = "LoRA to merge into the weights, a file or a folder of peft; may be given several times"
    sub.add_argument("--lora", metavar="FILE[:STRENGTH]", type=lora, action="append", default=[], help=text)


def loading_arguments(sub):
    """The options of how a checkpoint is loaded."""
    sub.add_argument("--device", help="cpu, cuda, mps; the best there is by default")
    sub.add_argument("--dtype", choices=DTYPES, help="dtype of weights and arithmetic; the file's by default")
    weight_arguments(sub)


def question_arguments(sub):
    """The options of a question's chat text and of the form of its answer."""
    sub.add_argument(
        "--answer", choices=ANSWERS, default="free", help="ask for a word or phrase, or for an option's letter"
    )
    sub.add_argument("--option", action="append", default=[], help="an option of --answer letter; once per option")
    sub.add_argument("--roles", choices=("auto", *ROLES), help="names in the chat template; the checkpoint's own")
    sub.add_argument("--system-prompt", help='text in front of the question; "" for none, as benchmarks ask')


class Progress:
    """A progress bar that a pipeline reports to. It ends at 100 %, also where a text ends before its limit."""

    def __init__(self, unit: str):
        self.bar = tqdm(unit=unit)

    def __call__(self, done: int, total: int):
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.bar.total = self.bar.n
            self.bar.refresh()
        self.bar.close()


def load(args, **kwargs):
    dtype = DTYPES.get(args.dtype)
    return loading.load(
        args.model, device=args.device, dtype=dtype, weight_dtype=args.weights, loras=args.lora, **kwargs
    )


def origin(args) -> dict:
    """The metadata of an image that name its weights."""
    loras = [f"{path}:{strength:g}" for path, strength in args.lora]
    return {"model": str(args.model), **({"loras": loras} if loras else {})}


def generate(args):
    check_output(args.out)
    pipe = load(args, vae=args.vae)
    tokens = {**token_settings(args), "system_prompt": args.system_prompt}
    tuned = {name: getattr(args, name) for name in ("think", "reflect", "text_temperature", "max_new_tokens")}
    steps = {"steps": args.steps, "denoise": args.denoise}
    is_flow = isinstance(pipe, JanusFlowPipeline)
    foreign = {**tokens, **tuned} if is_flow else {**steps, "image": args.image, "vae": args.vae}
    own = steps if is_flow else tokens
    check_absent(pipe, foreign)
    if is_flow and pipe.vae is None:
        raise JanusError("JanusFlow needs the SDXL VAE for images: name it with --vae.")
    if args.image and (args.denoise is None or args.denoise >= 1):
        raise JanusError("--image needs a --denoise below 1, which says how much of the image changes.")
    if args.image and args.size:
        raise JanusError("--size is not for --image: the result has the size of that image.")
    check_tuned(args)
    settings = given({**image_settings(args), **own})
    if args.think or args.reflect is not None:
        return generate_tuned(args, pipe, settings)
    if args.image:
        settings["latents"] = pipe.encode(open_image(args.image))
    with Progress("step" if is_flow else "token") as progress:
        images = pipe(args.prompt, callback=progress, **settings)
    settings.pop("latents", None)
    save_all(images, args.out, {"prompt": args.prompt, **origin(args), "image": args.image, **settings})


def check_tuned(args):
    """Raises JanusError for options of fine-tuned models that contradict each other or would have no effect."""
    if args.reflect is not None and (args.reflect < 0 or args.count != 1):
        raise JanusError("--reflect takes a number from 0 on and works on one image: leave --count at 1.")
    if not args.think and args.reflect is None:
        for name in given({"text-temperature": args.text_temperature, "max-new-tokens": args.max_new_tokens}):
            raise JanusError(f"--{name} is of the text that --think or --reflect writes: give one of these too.")
    if args.think and args.system_prompt is not None:
        raise JanusError("--system-prompt is not for --think, whose recipe has its own.")


def generate_tuned(args, pipe, settings: dict):
    """Plans first, and checks the image and generates it again, as --think and --reflect ask."""
    text = {"seed": args.seed, "temperature": args.text_temperature, "max_new_tokens": args.max_new_tokens}
    text = {**given(text), **given({"roles": args.roles})}
    prompts, planned = [args.prompt], [{}]
    with Progress("token") as progress:
        if args.think:
            thoughts = pipe.think(args.prompt, args.think, num_thoughts=args.count, callback=progress, **text)
            prompts = [thought.prompt for thought in thoughts]
            planned = [{"recipe": args.think, "thought": thought.thought} for thought in thoughts]
        settings = {**settings, "num_images": 1}
        metadata = {"prompt": args.prompt, **origin(args), **settings}
        if args.reflect is None:
            return save_all(pipe(prompts, callback=progress, **settings), args.out, metadata, planned)
        rounds = pipe.generate_until_match(
            args.prompt, args.reflect, first=prompts[0], text=text, callback=progress, **settings
        )
        for k, (image, reflection) in enumerate(rounds):
            checked = {"round": k, "matches": reflection.matches, "reason": reflection.reason}
            path = numbered(args.out, k)
            write_image(image, path, {**metadata, **planned[0], **checked})
            answer = f"{'Yes' if reflection.matches else 'No'}\n{reflection.reason}\n"
            write_text(path.with_suffix(".txt"), answer)
            print(path, flush=True)


def edit(args):
    check_output(args.out)
    pipe = load(args)
    if not isinstance(pipe, JanusPipeline):
        raise JanusError(f"The command edit is not for {TITLES[pipe.model.family]}.")
    settings = given({**image_settings(args), "image_guidance": args.image_guidance, **token_settings(args)})
    source = open_image(args.image)
    with Progress("token") as progress:
        images = pipe.edit(source, args.prompt, callback=progress, **settings)
    save_all(images, args.out, {"prompt": args.prompt, **origin(args), "image": args.image, **settings})


def image_settings(args) -> dict:
    """The settings of images that both families have."""
    return {
        "negative_prompt": args.negative,
        "num_images": args.count,
        "seed": args.seed,
        "size": args.size,
        "guidance": args.cfg,
        "guidance_interval": guidance_interval(args),
    }


def token_settings(args) -> dict:
    return {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "window", "roles")}


def guidance_interval(args) -> tuple[float, float] | None:
    """--cfg-start and --cfg-end, the missing one by its default; None without both."""
    start, end = args.cfg_start, args.cfg_end
    return None if start is None and end is None else (0.0 if start is None else start, 1.0 if end is None else end)


def given(options: dict) -> dict:
    """The options that are on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def check_absent(pipe, foreign: dict):
    """Raises JanusError for an option that is given and is not for the pipeline's family."""
    for name in given(foreign):
        raise JanusError(f"--{name.replace('_', '-')} is not for {TITLES[pipe.model.family]}.")


def save_all(images, out: Path, metadata: dict, own: list[dict] | None = None):
    """Saves images with their settings, numbered if there are several, and then prints their paths.

    Args:
        own: more settings of each image.
    """
    paths = [out] if len(images) == 1 else [numbered(out, k) for k in range(len(images))]
    for k, (image, path) in enumerate(zip(images, paths)):
        write_image(image, path, {**metadata, **(own[k] if own else {}), "index": k})
    for path in paths:  # after all are saved: whoever reads these lines may stop
        print(path)


def numbered(out: Path, k: int) -> Path:
    return out.with_stem(f"{out.stem}_{k:03}")
