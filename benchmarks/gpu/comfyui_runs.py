"""The MODELs in a process with ComfyUI's modules: loaded whole and dynamically; LoRA on and off, Cancel, reload.

The process runs tests/comfyui/inside_gpu_run.py with ComfyUI's Python. comfy-kitchen's CUDA kernels are used where
they are installed; the result says whether.
"""

import json
import os
import subprocess
from functools import partial

from .. import ROOT
from ..comfyui_server import find_comfyui, python_of
from .parts import Context, NotRun

MODES = {"whole": {"JANUS_CUDA_GRAPHS": "1"}, "dynamic": {}, "dynamic, 2 GB": {}}


def cases(context: Context):
    for mode in MODES:
        for family in ("ar", "flow"):
            yield f"{mode}, {family}", partial(run, context, mode, family)


def run(context: Context, mode: str, family: str) -> dict:
    comfyui = find_comfyui()
    if comfyui is None:
        raise NotRun("no ComfyUI was found ($COMFYUI_PATH)")
    if context.is_tiny and mode == "dynamic, 2 GB":
        raise NotRun("ComfyUI has no dynamic loader on a CPU")
    script = ROOT / "tests" / "comfyui" / "inside_gpu_run.py"
    size = "demo" if context.is_tiny else "1b"
    done = subprocess.run(
        [python_of(comfyui), script, context.device, mode, family, size],
        cwd=comfyui,
        env={**os.environ, **MODES[mode]},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return json.loads(done.stdout.splitlines()[-1])
