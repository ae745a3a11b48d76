"""Importing this in a process with ComfyUI's Python and folder makes its modules, and the pack as `pack`, importable.

The process has no GPU and no server.
"""

import importlib.util
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path.cwd()), str(PACK), str(PACK / "tests"), str(PACK / "tests" / "core")]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
arguments, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
import comfy.cli_args  # noqa: E402, F401  (reads them)

sys.argv = arguments
spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
