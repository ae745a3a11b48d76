"""Weights of 4 bits, which need comfy-kitchen: ComfyUI's own Python has it."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.comfyui_server import python_of

CHECKS = [
    "the_layout_is_comfyuis",
    "a_file_is_written_and_read",
    "the_loader_samples_with_them",
    "they_are_refused_where_they_cannot_run",
]


@pytest.mark.parametrize("check", CHECKS)
def test_int4_inside_comfyui(comfyui, check):
    script = Path(__file__).with_name("inside_int4.py")
    command = [python_of(comfyui), str(script), check]
    result = subprocess.run(command, cwd=comfyui, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
