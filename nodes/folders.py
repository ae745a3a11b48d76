"""Where checkpoints are looked for.

These are models/janus and what extra_model_paths.yaml adds to the key `janus`, an existing models/Janus-Pro, and the
pack's own demo folder.
"""

import functools
import logging
import os
from pathlib import Path

import folder_paths

from ..janus_core.checkpoint import detect_family
from ..janus_core.download import command, how_to_get
from ..janus_core.errors import CheckpointError
from ..janus_core.files import os_reason

KEY = "janus"
PACK = Path(__file__).resolve().parent.parent


def register():
    """Adds models/janus, which is created, to the folders of `janus`, the demo's VAE to `vae`, its LoRA to `loras`."""
    models = os.path.join(folder_paths.models_dir, "janus")
    try:
        os.makedirs(models, exist_ok=True)
    except OSError as error:  # a read-only installation; other folders may hold the checkpoints
        logging.warning(f"The folder {models} could not be created ({os_reason(error)}).")
    folder_paths.add_model_folder_path(KEY, models)
    folder_paths.add_model_folder_path("vae", str(PACK / "demo" / "vae"))
    folder_paths.add_model_folder_path("loras", str(PACK / "demo" / "loras"))


def roots() -> list[tuple[str, Path]]:
    """(name prefix, folder) of every folder that is searched, in order of precedence; some may not exist."""
    found = [("", Path(path)) for path in folder_paths.get_folder_paths(KEY)]
    found.append(("", Path(folder_paths.models_dir) / "Janus-Pro"))
    found.append(("demo/", PACK / "demo"))
    return found


def checkpoints() -> dict[str, Path]:
    """Every checkpoint folder and single file by name; the first root wins where a name is in several."""
    found = {}
    for prefix, root in roots():
        for path in _walk(root):
            found.setdefault(prefix + path.relative_to(root).as_posix(), path)
    return found


def _walk(root: Path):
    """Checkpoint folders and .safetensors files under a root; follows links, except those to a parent folder."""
    for folder, children, files in os.walk(root, followlinks=True):
        path = Path(folder)
        if os.path.realpath(folder) in (os.path.realpath(parent) for parent in path.parents):
            children.clear()
            continue
        if path != root and ("config.json" in files or "tokenizer.json" in files):
            children.clear()
            yield path
            continue
        children.sort()
        yield from (path / name for name in sorted(files) if name.endswith(".safetensors"))


@functools.lru_cache(maxsize=1024)
def _family(path: Path, _modified: tuple) -> str | None:
    """The family of a checkpoint; None, and a line in the log the first time, when it cannot be read."""
    try:
        return detect_family(path)
    except CheckpointError as error:
        logging.warning(f"Janus leaves out a checkpoint that cannot be read. {error}")
        return None


def _modified(path: Path) -> tuple:
    """When a checkpoint and its config were last changed, as far as that can be known."""
    try:
        return tuple(os.stat(file).st_mtime for file in (path, path / "config.json") if os.path.exists(file))
    except OSError:
        return ()


def names(family: str) -> list[str]:
    """Names of the checkpoints of a family; what cannot be read is left out."""
    found = [name for name, path in checkpoints().items() if _family(path, _modified(path)) == family]
    return sorted(found, key=lambda name: (name.startswith("demo/"), name.lower()))


def path_of(name: str) -> Path:
    """The path of a listed name. Raises CheckpointError, which first says how to get it, when it is missing."""
    found = checkpoints().get(name)
    if found is None:
        advice = how_to_get(name, Path(folder_paths.models_dir))
        places = ", ".join(f"{path}{'' if os.path.isdir(path) else ' (does not exist)'}" for _, path in roots())
        raise CheckpointError(f"{advice}. There is no checkpoint {name} in {places}.")
    return found


def fingerprint(name: str) -> tuple:
    """Name, size and time of change of each file of a listed checkpoint, () for one that is missing.

    It changes when a checkpoint is replaced by another of the same name.
    """
    path = checkpoints().get(name)
    if path is None:
        return ()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def missing_vae() -> str | None:
    """How to get the SDXL VAE when only the demo's and TAESD's VAEs are installed, else None."""
    shipped = {path.name for path in (PACK / "demo" / "vae").iterdir()}
    if any(name not in shipped and not name.startswith("tae") for name in folder_paths.get_filename_list("vae")):
        return None
    models = Path(folder_paths.models_dir)
    return (
        f"JanusFlow's latents need the SDXL VAE, and {models / 'vae'} has none: put sdxl_vae.safetensors there, or "
        f"fetch it with `{command('--vae', models)}`."
    )
