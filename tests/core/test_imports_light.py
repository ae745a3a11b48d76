"""The nodes load without diffusers and transformers, so a broken version of these disables no node."""

import ast
import subprocess
import sys

from test_imports import ROOT, files, imports, module_graph, top_level

HEAVY = ("accelerate", "diffusers", "huggingface_hub", "transformers")


def imported_by_nodes() -> set[str]:
    """The modules of janus_core that nodes/ imports."""
    return {name for path, package in files("nodes") for name in imports(path, package)} & module_graph().keys()


def test_nodes_import_no_heavy_library_and_no_demo():
    for path, package in files("nodes"):
        assert not top_level(path, package) & {*HEAVY, "demo"}, path


def test_the_modules_that_nodes_import_work_without_heavy_libraries():
    modules = imported_by_nodes()
    assert "janus_core.checkpoint" in modules
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))\n"  # importing a name that is None raises ImportError
        f"for name in {sorted(modules)}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_pack_only_names_its_entry_point():
    """Anything else in the pack's __init__.py could fail before ComfyUI can say which node is broken."""
    body = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    assert [type(statement) for statement in body] == [ast.ImportFrom, ast.Assign, ast.Assign]
