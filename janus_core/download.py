"""Downloads the official checkpoints and the SDXL VAE from the Hugging Face hub, only on request.

huggingface_hub resumes interrupted downloads, shows progress and verifies files.
"""

import contextlib
import fnmatch
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from .checkpoint.files import INDEXES, WHOLE
from .errors import DownloadError, first_line
from .files import os_reason, user_path

PACK = Path(__file__).resolve().parents[1]
TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json")


class Release(NamedTuple):
    """A repository, its weight files, and the folder they go to, relative to the models folder."""

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
    """`models` of the ComfyUI installation around the pack, else `models` in the current folder."""
    for parent in pack.parents:
        if parent.name == "custom_nodes":
            return parent.parent / "models"
    return Path("models")


def download_checkpoint(name: str, models: Path) -> Path:
    """Downloads an official checkpoint into `models`/janus and returns its folder.

    Args:
        name: a key of CHECKPOINTS.

    Raises:
        DownloadError: no network, no such repository, a full disk, or an interrupted download.
    """
    return _fetch(CHECKPOINTS[name], models, checkpoint_files)


def download_vae(models: Path) -> Path:
    """Downloads the SDXL VAE into `models`/vae and returns its path. Raises DownloadError like download_checkpoint."""
    return _fetch(VAE, models, lambda names: [name for name in VAE.weights if name in names]) / VAE.weights[0]


def checkpoint_files(names: list[str]) -> list[str]:
    """The files of a checkpoint folder in a repository: JSON files and one set of weights; [] without weights."""
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
    """Downloads from one revision of a repository the files that `choose` selects from the list of names."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise DownloadError("Downloading needs huggingface_hub: run `pip install huggingface_hub`.") from None

    folder = user_path(models, DownloadError) / release.folder
    with _download_errors(release.repo):
        info = HfApi().model_info(release.repo, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = choose(list(sizes))
    if not files:
        raise DownloadError(f"{release.repo} on the Hugging Face hub has no {' and '.join(release.weights)}.")
    _check_disk_space(folder, {name: sizes[name] for name in files})
    with _download_errors(release.repo):
        snapshot_download(release.repo, revision=info.sha, local_dir=folder, allow_patterns=files)
    return folder


@contextlib.contextmanager
def _download_errors(repo: str):
    """Converts the exceptions of huggingface_hub into DownloadErrors."""
    from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError:  # also raised for an invalid token
        raise DownloadError(
            f"The Hugging Face hub shows no repository {repo}: it is gone or private, or your HF_TOKEN is invalid."
        ) from None
    except HfHubHTTPError as error:
        raise DownloadError(f"The Hugging Face hub refused {repo} ({first_line(error)}): try again later.") from None
    except Exception as error:  # of the HTTP client, the disk, or the library itself
        raise DownloadError(
            f"{repo} could not be downloaded ({os_reason(error)}): check the network and rerun the command, "
            "which resumes the download."
        ) from None


def _check_disk_space(folder: Path, sizes: dict[str, int]):
    """Raises DownloadError when the missing files do not fit on the disk."""
    complete = [folder / name for name, size in sizes.items() if _size(folder / name) == size]
    partial = (folder / ".cache").rglob("*.incomplete")
    needed = sum(sizes.values()) - sum(_size(path) for path in (*complete, *partial))
    disk = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise DownloadError(
            f"{folder} needs {needed / 1e9:.1f} GB more but its disk has {free / 1e9:.1f} GB free: free some space, "
            "or choose another models folder with --to."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def command(what: str, models: Path) -> str:
    """The shell command that downloads `what` (a name of CHECKPOINTS, or --vae), with the Python that runs now.

    It names the package's folder, since the Python of ComfyUI's Windows archive ignores the current folder.
    """
    words = [sys.executable or "python", str(PACK / "janus_core"), "download", what]
    if models != models_folder():
        words += ["--to", str(models)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def how_to_get(name: str, models: Path) -> str:
    """How to get a missing checkpoint, as the first sentence of an error message, without its full stop.

    Args:
        name: the missing folder or file.
        models: the models folder that was searched.
    """
    key = Path(name).name.lower().removesuffix(".safetensors")
    release = CHECKPOINTS.get(key)
    if release is None:
        names = ", ".join(CHECKPOINTS)
        return f"Choose another one, or download an official one ({names}) with `{command('NAME', models)}`"
    *files, last = (*TEXTS, *release.weights)
    return (
        f"Run `{command(key, models)}`, or put {', '.join(files)} and {last} of huggingface.co/{release.repo} into "
        f"{models / release.folder}"
    )
