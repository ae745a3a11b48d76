"""Settings of a fine-tuning config (configs/finetune.json) and of the training loop, with their types and ranges."""

from dataclasses import dataclass, fields

from ..errors import TrainingError
from ..schema import FLAG, Items, Number, OneOf, Section, Text, Whole, check_fields

RATE = Number(1e-12, 10)
SHARE = Number(0, 1)
SEED = Whole(0, 2**32 - 1)
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHTINGS = ("examples", "tasks")

FINETUNE = {
    "task": OneOf(("finetune",)),
    "checkpoint": Text(),
    "vae": Text(empty=True),
    "images": Text(),
    "folder": Text(),
    "cache": Text(),
    "seed": SEED,
    "stage": OneOf((1, 2, 3)),
    "rows": Whole(1, 10000),
    "ratio": Items(Number(0, 1e6), 2, 2),
    "loss_weighting": OneOf(WEIGHTINGS),
    "caption_dropout": SHARE,
    "caption_tokens": Whole(1, 100000),
    "prior": Section(),
    "repa": Number(0, 1e6),
    "time_mean": Number(-100, 100),
    "unconditional_smoothing": SHARE,
    "gradient_checkpointing": FLAG,
    "lora": Section(),
    "loop": Section(),
    "validation": Section(),
}
NEEDED = ("checkpoint", "images", "seed", "rows", "loop")
LORA = {
    "rank": Whole(1, 4096),
    "alpha": Number(1e-6, 1e6),
    "targets": Items(OneOf(LAYERS), 1, len(LAYERS)),
    "base": OneOf(("bf16", "fp32", "int8", "nf4")),
}
PRIOR = {"images": Text(), "share": SHARE}
VALIDATION = {
    "prompts": Items(Text(empty=True), 0),
    "questions": Items(Section(), 0),
    "seed": SEED,
    "guidance": Number(1, 100),
}
QUESTION = {"image": Text(), "question": Text()}
SECTIONS = {"lora": LORA, "prior": PRIOR, "validation": VALIDATION}
LOOP = {
    "steps": Whole(1, 10**9),
    "lr": RATE,
    "warmup": Whole(0, 10**9),
    "decay": SHARE,
    "betas": Items(Number(0, 0.999999), 2, 2),
    "weight_decay": Number(0, 1e6),
    "clip": Number(1e-12, 1e12),
    "optimizer": OneOf(("adamw", "adamw8bit")),
    "step_in_backward": FLAG,
    "ema": Number(0, 0.999999),
    "ema_warmup": FLAG,
    "ema_device": OneOf(("cpu", "same")),
    "accumulate": Whole(1, 10**6),
    "precision": OneOf(("bf16", "no")),
    "seed": SEED,
    "workers": Whole(0, 256),
    "tensorboard": FLAG,
    "log_every": Whole(1, 10**9),
    "save_every": Whole(1, 10**9),
    "sample_every": Whole(0, 10**9),
}


@dataclass(frozen=True)
class LoopSettings:
    """Settings of one run; the defaults are JanusFlow's (arXiv 2411.07975, table 1 and section 4.1).

    `decay` is the share of the steps, at the end, over which the learning rate falls linearly to zero; 0 is a constant
    rate. One step accumulates the gradients of `accumulate` batches. `step_in_backward` frees each gradient at once
    (see optimizers.StepInBackward). `workers` processes prepare batches; with 0 the training process does.

    Raises:
        TrainingError: a setting has another type, is out of the range in LOOP, or does not fit another one.
    """

    steps: int
    lr: float = 1e-4
    warmup: int = 2000
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    optimizer: str = "adamw"  # or "adamw8bit"
    step_in_backward: bool = False
    ema: float = 0.99  # 0 for none
    ema_warmup: bool = False
    ema_device: str = "same"  # as the weights, or "cpu"
    accumulate: int = 1
    precision: str = "bf16"  # or "no"
    seed: int = 0
    workers: int = 0
    tensorboard: bool = False
    log_every: int = 50
    save_every: int = 500
    sample_every: int = 0

    def __post_init__(self):
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise TrainingError(f"The training loop's setting {missing[0]} must not be null.")
        check_fields(values, LOOP, "The training loop", TrainingError)
        if self.step_in_backward and self.accumulate > 1:
            raise TrainingError(
                f"The training loop: accumulate is {self.accumulate}, but step_in_backward frees the gradients that it "
                "adds up: set accumulate to 1, or step_in_backward to false."
            )


def check_finetune(config: dict, name):
    """Checks a fine-tuning config.

    Raises:
        TrainingError: a setting is missing, unknown, of another type or out of range.
    """
    name = f"The config {name}"
    for key, section in SECTIONS.items():
        if config.get(key) == {}:
            raise TrainingError(f"{name}: {key} is empty: set {next(iter(section))}, or {key} to null to leave it out.")
    _check_section(config, FINETUNE, name, NEEDED if config.get("lora") else (*NEEDED, "stage"))
    for key, section in SECTIONS.items():
        check_fields(config.get(key) or {}, section, f"{name}: {key}", TrainingError, closed=True)
    for question in (config.get("validation") or {}).get("questions") or ():
        _check_section(question, QUESTION, f"{name}: validation: questions", QUESTION)
    if config.get("prior"):
        _check_section(config["prior"], PRIOR, f"{name}: prior", ("images",))
    loop = {key: field for key, field in LOOP.items() if key != "seed"}  # which is the config's own
    _check_section(config["loop"], loop, f"{name}: loop", ("steps",))
    loop_settings(config)
    ratio = config.get("ratio")
    if ratio is not None and not sum(ratio):
        raise TrainingError(f"{name}: ratio is {ratio}, one of its numbers must be over 0.")
    if config["rows"] == 1 and (ratio is None or all(ratio)):
        raise TrainingError(f"{name}: rows is 1, but the ratio asks for rows of two kinds: use 2 or more.")


def _check_section(values: dict, section: dict, name: str, needed):
    """Raises TrainingError for a value of a section that does not fit its field, and for a needed one that it lacks."""
    check_fields(values, section, name, TrainingError, closed=True)
    missing = [key for key in needed if values.get(key) is None]
    if missing:
        raise TrainingError(f"{name} lacks the setting {missing[0]!r}.")


def setting(section: dict, name: str, default):
    """The value of an optional setting, or the default if the section lacks it or has null for it."""
    value = section.get(name)
    return default if value is None else value


def loop_settings(config: dict) -> LoopSettings:
    """The loop's settings of a fine-tuning config; by default without EMA for a LoRA, else with one that warms up, and
    with a warm-up of the rate over the first twentieth of the steps.

    Raises:
        TrainingError: they do not fit together.
    """
    defaults = {
        "warmup": min(LoopSettings.warmup, config["loop"]["steps"] // 20),
        "ema": 0.0 if config.get("lora") else 0.99,
        "ema_warmup": True,
        "workers": 2,
        "sample_every": 100 if config.get("validation") else 0,
    }
    given = {name: value for name, value in config["loop"].items() if value is not None}
    return LoopSettings(**{**defaults, **given}, seed=config["seed"])
