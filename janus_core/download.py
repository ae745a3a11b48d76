"""The official checkpoints and the SDXL VAE from the Hugging Face hub, fetched only when a person asks.

The hub's library resumes what was begun, shows progress and checks what arrives.
"""

import contextlib
import fnmatch
import shutil
from pathlib import Path
from typing import NamedTuple

from .checkpoint.files import INDEXES, WHOLE
from .errors import DownloadError

PACK = Path(__file__).resolve().parents[1]
TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json")


class Release(NamedTuple):
    """What is published, and where it goes under a models folder."""

    repo: str
    folder: str
    weights: tuple[str, ...]


CHECKPOINTS = {
    "janus-pro-1b": Release("deepseek-ai/Janus-Pro-1B", "janus/Janus-Pro-1B", ("pytorch_model.bin",)),
    "janus-pro-7b": Release(
        "deepseek-ai/Janus-Pro-7B",
        "janus/Janus-Pro-7B",
        (
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model.bin.index.json",
        ),
    ),
    "janus-1.3b": Release("deepseek-ai/Janus-1.3B", "janus/Janus-1.3B", ("model.safetensors",)),
    "janusflow-1.3b": Release("deepseek-ai/JanusFlow-1.3B", "janus/JanusFlow-1.3B", ("model.safetensors",)),
}
VAE = Release("stabilityai/sdxl-vae", "vae", ("sdxl_vae.safetensors",))


def models_folder(pack: Path = PACK) -> Path:
    """`models` of the ComfyUI that the pack is installed in, else `models` in the current folder."""
    for parent in pack.parents:
        if parent.name == "custom_nodes":
            return parent.parent / "models"
    return Path("models")


def download_checkpoint(name: str, models: Path) -> Path:
    """Fetches an official checkpoint into `models`/janus and returns its folder.

    Args:
        name: a key of CHECKPOINTS.

    Raises:
        DownloadError: no network, no such repository, no room, or the download broke off.
    """
    return _fetch(CHECKPOINTS[name], models, checkpoint_files)


def download_vae(models: Path) -> Path:
    """Fetches the SDXL VAE into `models`/vae and returns its path. Raises DownloadError as download_checkpoint."""
    return _fetch(VAE, models, lambda names: [name for name in VAE.weights if name in names]) / VAE.weights[0]


def checkpoint_files(names: list[str]) -> list[str]:
    """Of a repository's files, those of a checkpoint folder: JSON files, and one kind of weights; [] if it has none."""
    top = [name for name in names if "/" not in name]
    texts = [name for name in top if name.endswith(".json") and name not in INDEXES]
    for whole, index in zip(WHOLE, INDEXES):
        if whole in top:
            return [*texts, whole]
        if index in top:
            stem, _, suffix = whole.rpartition(".")
            return [*texts, index, *fnmatch.filter(top, f"{stem}-*.{suffix}")]
    return []


def _fetch(release: Release, models: Path, choose) -> Path:
    """Fetches the files that `choose` picks from a repository's file names, all of one revision."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise DownloadError("Downloading needs huggingface_hub: pip install huggingface_hub.") from None

    folder = models / release.folder
    with _one_sentence(release.repo):
        info = HfApi().model_info(release.repo, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    files = choose(list(sizes))
    if not files:
        raise DownloadError(f"{release.repo} on the Hugging Face hub holds no {' and '.join(release.weights)}.")
    _check_room(folder, {name: sizes[name] for name in files})
    with _one_sentence(release.repo):
        snapshot_download(release.repo, revision=info.sha, local_dir=folder, allow_patterns=files)
    return folder


@contextlib.contextmanager
def _one_sentence(repo: str):
    """Turns what the hub's library raises into DownloadErrors."""
    from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError:  # the hub also says so when it refuses a token
        raise DownloadError(
            f"The Hugging Face hub shows no repository {repo}: it is gone or private, or your HF_TOKEN is not valid."
        ) from None
    except HfHubHTTPError as error:
        raise DownloadError(f"The Hugging Face hub refused {repo} ({_first_line(error)}).") from None
    except Exception as error:  # many kinds get through: the HTTP client's, the disk's, the library's own
        raise DownloadError(
            f"{repo} could not be fetched ({_first_line(error)}): check the network and run the same command again, "
            "it goes on where it stopped."
        ) from None


def _check_room(folder: Path, sizes: dict[str, int]):
    """Raises DownloadError when the files that are not there yet do not fit on the disk."""
    there = [folder / name for name, size in sizes.items() if _size(folder / name) == size]
    begun = (folder / ".cache").rglob("*.incomplete")
    needed = sum(sizes.values()) - sum(_size(path) for path in (*there, *begun))
    disk = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise DownloadError(
            f"{folder} needs {needed / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB free: make room, or "
            "choose another models folder with --to."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def how_to_get(name: str, models: Path) -> str:
    """What to do about a checkpoint that is not there, as the second half of a sentence.

    Args:
        name: what was asked for, a folder or file name.
        models: the models folder that is searched.
    """
    place = "" if models == models_folder() else f" --to {models}"
    command = "python -m janus_core download"
    key = Path(name).name.lower().removesuffix(".safetensors")
    release = CHECKPOINTS.get(key)
    if release is None:
        return f"choose another one, or fetch an official one with `{command} NAME{place}`, run in {PACK}"
    *files, last = (*TEXTS, *release.weights)
    return (
        f"run `{command} {key}{place}` in {PACK}, or put {', '.join(files)} and {last} of "
        f"huggingface.co/{release.repo} into {models / release.folder}"
    )
