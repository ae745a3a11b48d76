"""What the nodes import at start needs neither diffusers nor transformers, so an odd version of them costs no node."""

import ast
import subprocess
import sys

from test_imports import ROOT, files, imports

HEAVY = ("accelerate", "diffusers", "huggingface_hub", "transformers")


def imported_by_nodes() -> set[str]:
    """The modules of janus_core that nodes/ imports."""
    return {
        name for path, package in files("nodes") for name in imports(path, package) if name.startswith("janus_core")
    }


def test_nodes_import_no_heavy_library():
    for path, package in files("nodes"):
        assert not {name.split(".")[0] for name in imports(path, package)} & set(HEAVY), path


def test_what_the_nodes_import_works_without_the_heavy_libraries():
    modules = imported_by_nodes()
    assert "janus_core.checkpoint" in modules
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))\n"  # importing a name that is None raises ImportError
        f"for name in {sorted(modules)}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_door_does_nothing_but_name_the_entry_point():
    """Whatever else it did could fail before ComfyUI can say which node is broken."""
    body = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    assert [type(statement) for statement in body] == [ast.ImportFrom, ast.Assign, ast.Assign]
