"""One output file of a batch run, and the seeds of its images."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath

from ..errors import JanusError

NAME_BYTES = 255  # of a file or folder name on common file systems


class BatchError(JanusError):
    """A manifest, or what an earlier run left, cannot be used."""


@dataclass(frozen=True)
class Output:
    """An output file and everything it depends on, apart from the checkpoint.

    Attributes:
        path: relative to the output folder, with "/".
        job: id of the manifest's job.
        task: "generate" for a PNG file, "describe" for a text file.
        prompt: or the question.
        seeds: one per image; several make a grid of two columns, row by row without gaps.
        images: files that the question is about, relative to the manifest's folder.
        settings: of the sampler, and size, roles, system_prompt.
        beside: {path: text} of files that belong with this one.
    """

    path: str
    job: str
    task: str
    prompt: str
    seeds: tuple[int, ...]
    negative: str = ""
    images: tuple[str, ...] = ()
    settings: dict = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def request(self) -> dict:
        """What is asked for, as it is recorded."""
        return {name: value for name, value in self.as_dict().items() if name not in ("path", "beside")}

    def as_dict(self) -> dict:
        """For JSON; `from_dict` is the way back."""
        return {**asdict(self), "seeds": list(self.seeds), "images": list(self.images)}

    @classmethod
    def from_dict(cls, values: dict) -> "Output":
        return cls(**{**values, "seeds": tuple(values["seeds"]), "images": tuple(values["images"])})


def image_seed(base: int, job: str, k: int) -> int:
    """The seed of image k of a job: 64 bits of SHA-256 over the base seed, the job's id and k."""
    text = f"{base}\n{job}\n{k}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def job_seeds(base: int, own: int | None, job: str, count: int) -> tuple[int, ...]:
    """The seeds of a job's images: own, own + 1, … if the job has a seed, as `generate` takes them, else image_seed."""
    if own is not None:
        return tuple((own + k) % 2**64 for k in range(count))
    return tuple(image_seed(base, job, k) for k in range(count))


def check_path(path: str, where: str) -> str:
    """A path that stays in the output folder, with "/". Raises BatchError for any other."""
    pure = PurePosixPath(path.replace("\\", "/"))
    bad = pure.is_absolute() or not pure.parts or ":" in pure.parts[0] or "\0" in path
    if bad or any(part in ("..", "") or len(part.encode()) > NAME_BYTES - 5 for part in pure.parts):
        raise BatchError(f"{where}: {path[:80]!r} is not a path within the output folder: give another `out` or id.")
    return str(pure)


def check_unique(outputs: list[Output]) -> list[Output]:
    """The outputs themselves. Raises BatchError when two have one path, or there is none."""
    if not outputs:
        raise BatchError("There is no job to run: the manifest is empty.")
    seen = {}
    for output in outputs:
        other = seen.setdefault(output.path.casefold(), output)
        if other is not output:
            raise BatchError(f"The jobs {other.job} and {output.job} would both write {output.path}: rename one.")
    return outputs
