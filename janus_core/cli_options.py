"""Options that several commands have, and what they share while they run."""

import argparse

import torch
from tqdm import tqdm

from .checkpoint import WEIGHT_CHOICES
from .prompt import ROLES
from .questions import ANSWERS

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
    sub.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of weights and arithmetic; the file's by default, or fp32 on a CPU that cannot multiply in it",
    )
    weight_arguments(sub)


def model_arguments(sub):
    """The options of a checkpoint and of random numbers."""
    sub.add_argument("--model", required=True, help="checkpoint folder or single .safetensors file")
    loading_arguments(sub)
    sub.add_argument("--seed", type=int, default=0, help="of the random numbers, 0 by default")


def roles_argument(sub):
    text = "names in the chat template; auto, the default, takes the checkpoint's own"
    sub.add_argument("--roles", choices=("auto", *ROLES), help=text)


def token_arguments(group):
    """The options of the token sampler."""
    group.add_argument("--temperature", type=float, help="1 by default; 0 is greedy")
    group.add_argument("--top-k", type=int, help="sample from the k most likely tokens; 0, off, by default")
    group.add_argument("--top-p", type=float, help="sample from the most likely tokens of this probability; 1 is off")
    group.add_argument("--window", type=int, help="tokens per pass, guessed and verified (Jacobi); 1, off, by default")
    roles_argument(group)


def question_arguments(sub):
    """The options of a question's chat text and of the form of its answer."""
    sub.add_argument(
        "--answer", choices=ANSWERS, default="free", help="ask for a word or phrase, or for an option's letter"
    )
    sub.add_argument("--option", action="append", default=[], help="an option of --answer letter; once per option")
    roles_argument(sub)
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


def given(options: dict) -> dict:
    """The options that are on the command line."""
    return {name: value for name, value in options.items() if value is not None}
