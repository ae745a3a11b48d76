"""The arrows between the rooms: nodes/ is the only importer of ComfyUI, and janus_core has no circles."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMFY = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "execution",
    "server",
}
FORBIDDEN = {"janus", "attrdict", "timm", "einops"}
ALLOWED = {  # who may import whom inside janus_core, by first path component
    "networks": {"attention"},
    "understanding": {"networks"},
    "janus": {"attention", "networks", "understanding"},
    "janusflow": {"attention", "networks", "understanding"},
    "prompt": {"errors"},
    "image": {"errors"},
    "vae": {"checkpoint", "errors"},
    "fused": {"networks"},
    "sampling": {"attention", "errors", "fused", "janus", "janusflow", "networks", "prompt", "understanding"},
    "checkpoint": {"attention", "errors", "janus", "janusflow", "networks"},
}


def imports(path: Path, package: tuple[str, ...]):
    """Absolute dotted names that a file imports; `package` is the one it lies in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from [module] if node.module else (f"{module}.{alias.name}" for alias in node.names)


def files(folder: str):
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, path.relative_to(ROOT).parts[:-1]


def test_janus_core_imports_no_comfyui():
    for path, package in files("janus_core"):
        top = {name.split(".")[0] for name in imports(path, package)}
        assert not top & (COMFY | FORBIDDEN), path


def test_janus_core_runs_where_comfyui_is_absent():
    code = (
        "import sys, pkgutil, importlib, janus_core\n"
        "others = ('__main__', '.training', '.kernels')\n"
        "for m in pkgutil.walk_packages(janus_core.__path__, 'janus_core.'):\n"
        "    if not any(part in m.name for part in others): importlib.import_module(m.name)\n"
        f"assert not set(sys.modules) & {COMFY!r}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nodes_is_the_only_importer_of_comfyui():
    for folder in ("janus_core", "benchmarks", "tests/core"):
        for path, package in files(folder):
            assert not {n.split(".")[0] for n in imports(path, package)} & COMFY, path


def test_rooms_of_janus_core_know_only_who_stands_below():
    for path, package in files("janus_core"):
        room = (*package, path.stem)[1]
        if room not in ALLOWED:
            continue
        for name in imports(path, package):
            parts = name.split(".")
            if parts[0] == "janus_core" and len(parts) > 1 and parts[1] != room:
                assert parts[1] in ALLOWED[room], f"{path} imports {name}"
