"""The command serve."""

import os
from collections.abc import Callable
from pathlib import Path

from ..cli_options import DTYPES, examples, loading_arguments, roles_argument
from ..errors import JanusError
from ..prompt import SYSTEM_PROMPT

EXAMPLES = """\
  python -m janus_core serve --model models/janus/Janus-Pro-1B
  python -m janus_core serve --model pro=models/janus/Janus-Pro-7B --weights int8 --host 0.0.0.0 --api-key SECRET"""


def add_command(commands):
    """Adds `serve` to the subparsers of the command line."""
    text = "Serve checkpoints to clients of OpenAI's API (docs/serving.md)."
    sub = commands.add_parser("serve", help=text, description=text, **examples(EXAMPLES))
    sub.set_defaults(function=serve)
    sub.add_argument(
        "--model", action="append", required=True, metavar="[NAME=]PATH", help="checkpoint; may be given several times"
    )
    sub.add_argument("--vae", help="JanusFlow: SDXL VAE, a diffusers folder or sdxl_vae.safetensors")
    loading_arguments(sub)
    sub.add_argument("--host", default="127.0.0.1", help="127.0.0.1 by default: this machine alone")
    sub.add_argument("--port", type=int, default=8000, help="8000 by default")
    sub.add_argument("--api-key", help="that clients must send; JANUS_API_KEY by default, or none")
    sub.add_argument("--batch-size", type=int, help="the most images at once; by default as many as fit in memory")
    sub.add_argument(
        "--queue-size",
        type=int,
        default=64,
        help="images or answers that may wait, 64 by default; then 429",
    )
    sub.add_argument("--timeout", type=float, default=600.0, help="seconds until a request is given up")
    sub.add_argument("--max-images", type=int, default=16, help="the largest n of a request")
    sub.add_argument("--max-body-mb", type=int, default=64, help="the largest request, in MB")
    sub.add_argument("--max-image-mb", type=int, default=20, help="the largest image of a request, in MB")
    sub.add_argument("--system-prompt", default=SYSTEM_PROMPT, help='system prompt of chats without one; "" for none')
    roles_argument(sub)
    sub.set_defaults(roles="auto")


def serve(args):
    """Runs the server until it is interrupted."""
    uvicorn, app = _app(args)
    uvicorn.run(app, host=args.host, port=args.port, log_level="info", timeout_graceful_shutdown=10)


def _app(args):
    """(uvicorn, the application). Raises JanusError where the web framework is not installed."""
    try:
        import uvicorn

        from .app import ServerSettings, create_app
    except ImportError as error:
        raise JanusError(f"serve needs {error.name}: `pip install -r requirements-serve.txt`.") from None
    check_positive(args, ("batch_size", "queue_size", "timeout", "max_images", "max_body_mb", "max_image_mb"))
    settings = ServerSettings(
        api_key=args.api_key or os.environ.get("JANUS_API_KEY") or None,
        queue_size=args.queue_size,
        timeout=args.timeout,
        most_body_bytes=args.max_body_mb << 20,
        most_image_bytes=args.max_image_mb << 20,
        most_images=args.max_images,
        system_prompt=args.system_prompt,
        roles=args.roles,
    )
    from .. import loading

    load = {"device": args.device, "dtype": DTYPES.get(args.dtype), "weight_dtype": args.weights}
    load["loras"] = args.lora
    return uvicorn, create_app(load_models(args.model, args.vae, args.batch_size, loading.load, **load), settings)


def load_models(names: list[str], vae: str | None, batch_size: int | None, load: Callable, **settings) -> list:
    """Loads `[NAME=]PATH` checkpoints as models of the server.

    Args:
        batch_size: None finds it from memory.
        load, settings: janus_core.load and its arguments.

    Raises:
        JanusError: two models have one name, or see janus_core.load.
    """
    from ..batch.memory import batch_size_for
    from .work import Model

    models = {}
    for text in names:
        name, equals, path = text.partition("=")
        path = Path(path if equals else text).expanduser()
        name = name if equals else path.name.removesuffix(".safetensors")
        if name in models:
            raise JanusError(f"Two models are named {name}: give them names, as NAME=PATH.")
        pipe = load(path, vae=vae, **settings)
        models[name] = Model(name, pipe, batch_size or batch_size_for(pipe))
    return list(models.values())


def check_positive(args, names):
    """Raises JanusError for an option that is not positive."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise JanusError(f"--{name.replace('_', '-')} is {value}, it must be positive.")
