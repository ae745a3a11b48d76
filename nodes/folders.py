"""Where checkpoints are looked for.

These are models/janus and what extra_model_paths.yaml adds to the key `janus`, an existing models/Janus-Pro, and the
pack's own demo folder.
"""

import functools
import os
from pathlib import Path

import folder_paths

from ..janus_core.checkpoint import detect_family
from ..janus_core.download import how_to_get, models_folder
from ..janus_core.errors import CheckpointError

KEY = "janus"
PACK = Path(__file__).resolve().parent.parent


def register():
    """Adds models/janus to the folders of the key `janus`, the demo's VAE to those of `vae`, its LoRA to `loras`."""
    folder_paths.add_model_folder_path(KEY, os.path.join(folder_paths.models_dir, "janus"))
    folder_paths.add_model_folder_path("vae", str(PACK / "demo" / "vae"))
    folder_paths.add_model_folder_path("loras", str(PACK / "demo" / "loras"))


def roots() -> list[tuple[str, Path]]:
    """(name prefix, folder) of every folder that is searched, in order of precedence."""
    found = [("", Path(path)) for path in folder_paths.get_folder_paths(KEY)]
    found.append(("", Path(folder_paths.models_dir) / "Janus-Pro"))
    found.append(("demo/", PACK / "demo"))
    return [(prefix, path) for prefix, path in found if path.is_dir()]


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
def _family(path: Path, _modified: float) -> str | None:
    try:
        return detect_family(path)
    except CheckpointError:
        return "unreadable"  # both loaders list it; loading it says what is wrong


def names(family: str) -> list[str]:
    """Names of the checkpoints of a family, and of those whose family cannot be read."""
    found = []
    for name, path in checkpoints().items():
        config = path / "config.json" if path.is_dir() else path
        modified = config.stat().st_mtime if config.exists() else 0.0
        if _family(path, modified) in (family, "unreadable"):
            found.append(name)
    return sorted(found, key=lambda name: (name.startswith("demo/"), name.lower()))


def path_of(name: str) -> Path:
    """The path of a listed name. Raises CheckpointError, which says how to get it, when it is missing."""
    found = checkpoints().get(name)
    if found is None:
        places = ", ".join(str(path) for _, path in roots())
        advice = how_to_get(name, Path(folder_paths.models_dir))
        raise CheckpointError(f"There is no checkpoint {name} (looked in {places}): {advice}.")
    return found


def missing_vae() -> str | None:
    """How to get the SDXL VAE when only the demo's and TAESD's VAEs are installed, else None."""
    shipped = {path.name for path in (PACK / "demo" / "vae").iterdir()}
    if any(name not in shipped and not name.startswith("tae") for name in folder_paths.get_filename_list("vae")):
        return None
    models = Path(folder_paths.models_dir)
    place = "" if models == models_folder() else f" --to {models}"
    return (
        f"JanusFlow's latents need the SDXL VAE, and {models / 'vae'} has none: put sdxl_vae.safetensors there, or "
        f"fetch it with `python -m janus_core download --vae{place}`, run in {PACK}."
    )
