"""The settings of the samplers, checked when they are made."""

from dataclasses import dataclass, fields

from ..errors import SamplingError
from ..schema import Items, Number, Whole, check

MAX_NEW_TOKENS = 4096
MIN_TEMPERATURE = 1e-6  # below, logits divided by it could overflow; the most likely token is certain long before

SEED = Whole(0, 2**64 - 1)
FRACTION = Number(0, 1)
TEMPERATURE = Number(MIN_TEMPERATURE, 5, or_zero=True)


def check_range(name: str, value, low, high, whole: bool = False):
    """Raises SamplingError unless value is a number (a whole one if asked) and low <= value <= high."""
    check(name, value, Whole(low, high) if whole else Number(low, high), SamplingError)


def check_guidance(guidance: float, interval: tuple[float, float]):
    """Raises SamplingError unless guidance is in 0 to 100 and the interval in order within 0 to 1."""
    check_range("guidance", guidance, 0, 100)
    check("guidance_interval", interval, Items(FRACTION, 2, 2), SamplingError)
    if interval[0] > interval[1]:
        raise SamplingError(f"guidance_interval starts at {interval[0]}, after its end at {interval[1]}.")


def _check_selection(settings):
    """Of a dataclass with a seed and the settings of select_token."""
    check("seed", settings.seed, SEED, SamplingError)
    check("temperature", settings.temperature, TEMPERATURE, SamplingError)
    check_range("top_k", settings.top_k, 0, 2**31, whole=True)
    check("top_p", settings.top_p, FRACTION, SamplingError)


@dataclass(frozen=True)
class TokenSamplerSettings:
    """How image tokens are sampled; the defaults are those of the Janus-Pro paper.

    Attributes:
        seed: 0 to 2^64 - 1. Image k uses the random numbers of seed + k.
        guidance: w of classifier-free guidance, 0 to 100; 1 turns it off and halves the work.
        guidance_interval: the fractions of the run between which guidance acts (arXiv 2404.07724); after it the
            unconditional row is no longer computed.
        temperature: 0 selects the most likely token; else 1e-6 to 5.
        top_k: only the k most likely tokens; 0 is off.
        top_p: only the smallest set of tokens that together have this probability; 1 is off.
        window: positions per pass of the decoder; over 1 decodes speculatively (Jacobi window).

    Raises:
        SamplingError: a setting is out of range.
    """

    seed: int = 0
    guidance: float = 5.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    window: int = 1

    def __post_init__(self):
        check_guidance(self.guidance, self.guidance_interval)
        _check_selection(self)
        check_range("window", self.window, 1, 256, whole=True)


@dataclass(frozen=True)
class TextSamplerSettings:
    """How an answer is sampled; greedily by default.

    Attributes:
        max_new_tokens: the longest answer, 1 to 4096.
        temperature, top_k, top_p, seed: as in TokenSamplerSettings.

    Raises:
        SamplingError: a setting is out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self):
        check_range("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS, whole=True)
        _check_selection(self)


@dataclass(frozen=True)
class FlowSamplerSettings:
    """How the flow is integrated; the defaults are those of the JanusFlow paper.

    Attributes:
        seed: of the noise, `torch.randn` on the CPU.
        guidance: as in TokenSamplerSettings.
        guidance_interval: the times of the path, 0 for noise and 1 for the image, between which guidance acts; with a
            `denoise` of 0.4 the run covers the times from 0.6 on.
        steps: Euler steps, 1 to 10000.
        denoise: the share of the path that is run; below 1 the run starts from given latents.

    Raises:
        SamplingError: a setting is out of range.
    """

    seed: int = 0
    guidance: float = 2.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    steps: int = 30
    denoise: float = 1.0

    def __post_init__(self):
        check("seed", self.seed, SEED, SamplingError)
        check_guidance(self.guidance, self.guidance_interval)
        check_range("steps", self.steps, 1, 10000, whole=True)
        check("denoise", self.denoise, Number(1e-6, 1, or_zero=True), SamplingError)
        if self.denoise == 0:
            raise SamplingError("denoise is 0, so there is nothing to sample.")


def image_seeds(seed: int, seeds, count: int) -> list[int]:
    """The seed of each of `count` images: seed, seed + 1, …, or `seeds` where they are not None.

    Raises:
        SamplingError: there is not one seed per image, or one is out of range.
    """
    if seeds is None:
        return [seed + k for k in range(count)]
    check("seeds", seeds, Items(SEED, count, count), SamplingError)
    return list(seeds)


def settings_of(kind: type, given: dict):
    """A settings dataclass from keyword arguments. Raises SamplingError for one that it lacks."""
    return kind(**known(kind, given))


def known(kind: type, given: dict) -> dict:
    """Keyword arguments for a settings dataclass. Raises SamplingError for one that it lacks."""
    names = [field.name for field in fields(kind)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise SamplingError(f"There is no setting {unknown[0]} here, only {', '.join(names)}.")
    return given
