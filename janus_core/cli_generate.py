"""The commands generate and edit."""

from pathlib import Path

from . import loading
from .cli_options import DTYPES, Progress, given
from .errors import JanusError
from .files import check_output, write_text
from .image import open_image, write_image
from .pipeline import JanusFlowPipeline, JanusPipeline

TITLES = {"janus": "Janus and Janus-Pro", "janusflow": "JanusFlow"}  # of the families


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
        raise JanusError("--reflect must be 0 or more, and works on one image: leave --count at 1.")
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
