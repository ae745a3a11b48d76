"""The command batch: generate, describe, geneval, dpg, wise, compbench."""

from pathlib import Path

from ..cli_options import DTYPES, examples, given, model_arguments, question_arguments, size, token_arguments
from ..errors import JanusError
from ..files import user_path
from .groups import parse_shard
from .layouts import BENCHMARKS, benchmark_outputs
from .manifest import Defaults, read_outputs
from .run import Options, run_batch
from .worker import Setup

HELP = {
    "geneval": "GenEval's evaluation_metadata.jsonl",
    "dpg": "DPG-Bench's folder of prompts",
    "wise": "a JSON file of WISE, or the folder",
    "compbench": "a .txt file of T2I-CompBench",
}
EXAMPLES = {
    "generate": "  python -m janus_core batch generate prompts.txt --model models/janus/Janus-Pro-1B --out out",
    "describe": '  python -m janus_core batch describe images --question "What is it?" --model MODEL --out captions',
    "geneval": "  python -m janus_core batch geneval --prompts evaluation_metadata.jsonl --model MODEL --out out",
    "dpg": "  python -m janus_core batch dpg --prompts dpg_bench/prompts --model MODEL --out out",
    "wise": "  python -m janus_core batch wise --prompts wise/data --model MODEL --out out",
    "compbench": "  python -m janus_core batch compbench --prompts color_val.txt --model MODEL --out out",
}


def add_commands(commands):
    """Adds `batch` to the subparsers of the command line."""
    text = "Run many jobs: a manifest of prompts or images, or the prompts of a benchmark (docs/batch.md)."
    batch = commands.add_parser("batch", help=text, description=text).add_subparsers(
        dest="task", required=True, help="what to run; TASK --help has its options"
    )

    def command(name, function, text):
        sub = batch.add_parser(name, help=text, description=text, **examples(EXAMPLES[name]))
        sub.set_defaults(function=function)
        model_arguments(sub)
        _run_arguments(sub)
        return sub

    sub = command("generate", generate, "Generate images of a manifest (.jsonl, .csv, .parquet) or a .txt of prompts.")
    sub.add_argument("jobs", type=Path, help="the manifest")
    sub.add_argument("--count", type=int, default=1, help="images per prompt")
    _image_arguments(sub)

    sub = command("describe", describe, "Answer a question about every image of a manifest or a folder.")
    sub.add_argument("jobs", type=Path, help="the manifest, or a folder of images")
    sub.add_argument("--question", default="", help="question of the jobs that have none")
    sub.add_argument("--max-new-tokens", type=int, help="512 by default")
    sub.add_argument("--temperature", type=float, help="0 (greedy) by default")
    sub.add_argument(
        "--top-p", type=float, help="sample from the most likely tokens of this probability; 0.95 by default"
    )
    question_arguments(sub)

    for name in BENCHMARKS:
        sub = command(name, benchmark, f"Generate the images of {HELP[name]}, in the layout that its scorer reads.")
        sub.add_argument("--prompts", type=Path, required=True, help=HELP[name])
        sub.add_argument("--samples", type=int, help=f"images per prompt; {BENCHMARKS[name][2]} by default")
        _image_arguments(sub)


def _run_arguments(sub):
    sub.add_argument("--out", type=Path, required=True, help="folder of the outputs; OUT.run beside it has the records")
    sub.add_argument("--limit", type=int, help="only the first N jobs")
    sub.add_argument("--batch-size", type=int, help="the most images at once; by default as many as fit in memory")
    sub.add_argument("--shard", default="0/1", metavar="I/N", help="do only part I of N, counted from 0")
    sub.add_argument("--engine", choices=("process", "ray"), default="process", help="this process, or Ray")
    sub.add_argument("--workers", type=int, help="number of Ray workers; one per GPU by default")
    sub.add_argument("--cpus-per-worker", type=int, help="CPU cores of a Ray worker; 4 by default")
    sub.add_argument("--threads", type=int, help="threads of a worker on a CPU; as many as it has cores by default")
    sub.add_argument("--overwrite", action="store_true", help="replace outputs that were made with other settings")
    sub.add_argument("--contact-sheet", action="store_true", help="write OUT.run/contact_sheet.html to look at")


def _image_arguments(sub):
    sub.add_argument("--negative", default="", help="what the images should not show")
    sub.add_argument("--size", type=size, help="WIDTHxHEIGHT in pixels; the model's own by default")
    sub.add_argument("--cfg", type=float, help="guidance: 5 for Janus-Pro and 2 for JanusFlow by default")
    sub.add_argument("--vae", help="JanusFlow: SDXL VAE, a diffusers folder or sdxl_vae.safetensors")
    sub.add_argument("--steps", type=int, help="JanusFlow: 30 by default")
    token_arguments(sub)


def generate(args):
    settings = _image_settings(args)
    defaults = Defaults(args.seed, _positive(args.count, "--count"), args.negative, settings=settings)
    outputs, folder = read_outputs(args.jobs, "generate", defaults, _limit(args))
    _run(args, outputs, folder)


def describe(args):
    names = ("max_new_tokens", "temperature", "top_p", "roles", "system_prompt")
    settings = given({name: getattr(args, name) for name in names})
    form = {"question": args.question, "answer": args.answer, "options": tuple(args.option)}
    defaults = Defaults(args.seed, settings=settings, **form)
    outputs, folder = read_outputs(args.jobs, "describe", defaults, _limit(args))
    _run(args, outputs, folder)


def benchmark(args):
    defaults = Defaults(args.seed, negative=args.negative, settings=_image_settings(args))
    samples = None if args.samples is None else _positive(args.samples, "--samples")
    outputs = benchmark_outputs(args.task, args.prompts, defaults, samples, _limit(args))
    _run(args, outputs, Path("."))


def _image_settings(args) -> dict:
    names = ("temperature", "top_k", "top_p", "window", "roles", "steps")
    settings = given({"guidance": args.cfg, **{name: getattr(args, name) for name in names}})
    return settings if args.size is None else {**settings, "size": list(args.size)}


def _limit(args) -> int | None:
    return None if args.limit is None else _positive(args.limit, "--limit")


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise JanusError(f"{name} is {value}, it must be 1 or more.")
    return value


def _absolute(path: str) -> str:
    """A path that means the same on any machine that sees the files."""
    return str(user_path(path).absolute())


def _run(args, outputs, folder: Path):
    setup = Setup(
        model=_absolute(args.model),
        out=str(args.out),
        device=args.device,
        dtype=None if args.dtype is None else str(DTYPES[args.dtype]).removeprefix("torch."),
        weights=args.weights,
        vae=None if getattr(args, "vae", None) is None else _absolute(args.vae),
        loras=tuple((_absolute(path), strength) for path, strength in args.lora),
        images=str(folder.absolute()),
        overwrite=args.overwrite,
        threads=None if args.threads is None else _positive(args.threads, "--threads"),
    )
    options = Options(
        batch_size=args.batch_size,
        shard=parse_shard(args.shard),
        engine=args.engine,
        workers=args.workers,
        cpus_per_worker=args.cpus_per_worker,
        contact_sheet=args.contact_sheet,
    )
    summary = run_batch(outputs, setup, options)
    print(
        f"{summary['done']} made, {summary['skipped']} there before, {summary['failed']} failed; "
        f"{summary['images']} images in {summary['seconds']:.1f} s, {summary['images_per_second']:.3g} images/s"
    )
    if summary["failed"]:
        raise JanusError(f"{summary['failed']} outputs failed: see the summary in {args.out}.run.")
