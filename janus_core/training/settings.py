"""Settings of a fine-tuning config (configs/finetune.json) and of the training loop, with their types and ranges."""

from dataclasses import dataclass, fields

from ..errors import TrainingError
from ..schema import Items, Number, OneOf, Section, Text, Whole, check_fields

RATE = Number(1e-12, 10)
SHARE = Number(0, 1)
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

FINETUNE = {
    "task": OneOf(("finetune",)),
    "checkpoint": Text(),
    "vae": Text(empty=True),
    "images": Text(),
    "folder": Text(),
    "seed": Whole(0, 2**32 - 1),
    "stage": OneOf((1, 2, 3)),
    "rows": Whole(1, 10000),
    "ratio": Items(Number(0, 1e6), 2, 2),
    "repa": Number(0, 1e6),
    "lora": Section(),
    "loop": Section(),
}
NEEDED = ("checkpoint", "images", "seed", "rows", "loop")
LORA = {"rank": Whole(1, 4096), "alpha": Number(1e-6, 1e6), "targets": Items(OneOf(LAYERS), 1, len(LAYERS))}
LOOP = {
    "steps": Whole(1, 10**9),
    "lr": RATE,
    "warmup": Whole(0, 10**9),
    "decay": SHARE,
    "betas": Items(Number(0, 0.999999), 2, 2),
    "weight_decay": Number(0, 1e6),
    "clip": Number(1e-12, 1e12),
    "ema": Number(0, 0.999999),
    "accumulate": Whole(1, 10**6),
    "precision": OneOf(("bf16", "no")),
    "seed": Whole(0, 2**32 - 1),
    "log_every": Whole(1, 10**9),
    "save_every": Whole(1, 10**9),
    "sample_every": Whole(0, 10**9),
}


@dataclass(frozen=True)
class LoopSettings:
    """Settings of one run; the defaults are JanusFlow's (arXiv 2411.07975, table 1 and section 4.1).

    `decay` is the share of the steps, at the end, over which the learning rate falls linearly to zero; 0 is a constant
    rate. One step accumulates the gradients of `accumulate` batches.

    Raises:
        TrainingError: a setting has another type or is out of the range in LOOP.
    """

    steps: int
    lr: float = 1e-4
    warmup: int = 2000
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.99
    accumulate: int = 1
    precision: str = "bf16"  # or "no"
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    sample_every: int = 0

    def __post_init__(self):
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise TrainingError(f"The training loop's setting {missing[0]} must not be null.")
        check_fields(values, LOOP, "The training loop", TrainingError)


def check_finetune(config: dict, name):
    """Checks a fine-tuning config.

    Raises:
        TrainingError: a setting is missing, unknown, of another type or out of range.
    """
    name = f"The config {name}"
    check_fields(config, FINETUNE, name, TrainingError, closed=True)
    lora = config.get("lora")
    needed = NEEDED if lora else (*NEEDED, "stage")
    missing = [key for key in needed if config.get(key) is None]
    if missing:
        raise TrainingError(f"{name} lacks the setting {missing[0]!r}.")
    check_fields(lora or {}, LORA, f"{name}: lora", TrainingError, closed=True)
    loop = {key: field for key, field in LOOP.items() if key != "seed"}  # which is the config's own
    check_fields(config["loop"], loop, f"{name}: loop", TrainingError, closed=True)
    if config["loop"].get("steps") is None:
        raise TrainingError(f"{name} lacks the setting 'steps' in 'loop'.")
    ratio = config.get("ratio")
    if ratio is not None and not sum(ratio):
        raise TrainingError(f"{name}: ratio is {ratio}, one of its numbers must be over 0.")
    if config["rows"] == 1 and (ratio is None or all(ratio)):
        raise TrainingError(f"{name}: rows is 1, but the ratio asks for rows of two kinds: use 2 or more.")
