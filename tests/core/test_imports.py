"""Who imports whom: only nodes/ imports ComfyUI, and janus_core is layered, without cycles and without demo/."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = {
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
UNWANTED = {"janus", "attrdict", "timm", "einops", "demo", "nodes", "benchmarks"}
ALLOWED = {  # what each module and package of janus_core may import from the others
    "errors": set(),
    "files": {"errors"},
    "schema": {"errors"},
    "captions": {"errors", "files"},
    "attention": set(),
    "networks": {"attention", "errors"},
    "vision_language": {"networks"},
    "janus": {"attention", "networks", "vision_language"},
    "janusflow": {"attention", "networks", "vision_language"},
    "prompt": {"errors", "schema"},
    "image": {"errors", "files"},
    "questions": {"errors"},
    "checkpoint": {"attention", "errors", "files", "janus", "janusflow", "networks", "prompt", "schema"},
    "operations": {"checkpoint", "errors"},
    "vae": {"checkpoint", "errors", "files"},
    "download": {"checkpoint", "errors", "files"},
    "triton_decoder": {"networks"},
    "sampling": {
        "attention",
        "errors",
        "janus",
        "janusflow",
        "networks",
        "prompt",
        "schema",
        "triton_decoder",
        "vision_language",
    },
    "progress": set(),
    "describe": {"errors", "image", "prompt", "sampling", "vision_language"},
    "finetunes": {"errors", "image", "janus", "progress", "prompt", "sampling", "schema"},
    "devices": {"errors", "schema"},
    "pipeline_base": {"describe", "errors", "image", "progress", "prompt", "sampling", "schema"},
    "pipeline": {
        "errors",
        "finetunes",
        "image",
        "janusflow",
        "networks",
        "pipeline_base",
        "progress",
        "sampling",
        "vae",
        "schema",
    },
    "loading": {
        "checkpoint",
        "devices",
        "errors",
        "janusflow",
        "operations",
        "pipeline",
        "prompt",
        "schema",
        "vae",
    },
    "serve": {
        "batch",
        "cli_options",
        "describe",
        "errors",
        "image",
        "loading",
        "progress",
        "prompt",
        "sampling",
        "schema",
    },
    "requests": {"batch", "errors", "files", "image", "loading", "pipeline", "sampling", "schema"},
    "doctor": {
        "checkpoint",
        "devices",
        "download",
        "errors",
        "operations",
        "loading",
        "sampling",
        "triton_decoder",
    },
    "__init__": set(),  # its names are loaded on first use
    "training": {
        "attention",
        "captions",
        "checkpoint",
        "errors",
        "files",
        "image",
        "janus",
        "janusflow",
        "networks",
        "operations",
        "pipeline",
        "prompt",
        "schema",
        "vae",
    },
    "batch": {
        "captions",
        "checkpoint",
        "cli_options",
        "devices",
        "errors",
        "files",
        "image",
        "operations",
        "loading",
        "networks",
        "pipeline",
        "progress",
        "prompt",
        "questions",
        "sampling",
        "schema",
    },
    "cli": {
        "batch",
        "checkpoint",
        "cli_generate",
        "cli_options",
        "devices",
        "doctor",
        "download",
        "errors",
        "files",
        "finetunes",
        "image",
        "questions",
        "serve",
        "training",
    },
    "cli_generate": {"cli_options", "errors", "files", "image", "loading", "pipeline"},
    "cli_options": {"checkpoint", "prompt", "questions"},
    "__main__": {"cli"},
}


def imports(path: Path, package: tuple[str, ...]):
    """Absolute dotted names that a file imports; `package` is the one that contains it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files(folder: str):
    """(path, package) of each Python file."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, path.relative_to(ROOT).parts[:-1]


def top_level(path, package) -> set[str]:
    return {name.split(".")[0] for name in imports(path, package)}


def component(name: str) -> str:
    """The first part of a janus_core module's name, `__init__` for the package itself."""
    return (name.split(".") + ["__init__"])[1]


def module_graph() -> dict[str, set[str]]:
    """The modules of janus_core and those that importing each one loads, apart from the packages that contain it."""
    paths = {}
    for path, package in files("janus_core"):
        paths[".".join(package if path.stem == "__init__" else (*package, path.stem))] = path, package
    graph = {}
    for module, (path, package) in paths.items():
        loaded = set()
        for name in imports(path, package):
            parts = name.split(".")
            prefixes = {".".join(parts[: k + 1]) for k in range(len(parts))}
            loaded |= {p for p in prefixes & paths.keys() if p != module and not module.startswith(p + ".")}
        graph[module] = loaded
    return graph


def test_janus_core_imports_neither_comfyui_nor_what_is_built_on_it():
    for path, package in files("janus_core"):
        assert not top_level(path, package) & (COMFYUI | UNWANTED), path


def test_janus_core_runs_where_comfyui_is_absent():
    code = (
        "import sys, pkgutil, importlib, janus_core\n"
        "others = ('__main__', '.training', '.kernels', '.ray_engine', '.serve')\n"
        "for m in pkgutil.walk_packages(janus_core.__path__, 'janus_core.'):\n"
        "    if not any(part in m.name for part in others): importlib.import_module(m.name)\n"
        f"assert not set(sys.modules) & {COMFYUI!r}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("folder", ["benchmarks", "demo", "tests/core"])
def test_only_nodes_import_comfyui(folder):
    for path, package in files(folder):
        assert not top_level(path, package) & COMFYUI, path


def test_janus_core_has_no_import_cycles():
    TopologicalSorter(module_graph()).prepare()  # raises CycleError


def test_modules_of_janus_core_import_what_the_table_says():
    found = {}
    for module, loaded in module_graph().items():
        own = component(module)
        found[own] = found.get(own, set()) | {component(name) for name in loaded} - {own}
    assert found == ALLOWED
