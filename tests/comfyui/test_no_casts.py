"""After the first use no weight is cast again: counted in a process that has ComfyUI's modules."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.comfyui_server import python_of


@pytest.mark.parametrize("weight_dtype", ["default", "bf16", "fp32", "fp16", "int8", "fp8_e4m3fn"])
def test_no_weight_is_cast_twice(comfyui, weight_dtype):
    script = Path(__file__).with_name("inside_casts.py")
    command = [python_of(comfyui), str(script), weight_dtype]
    result = subprocess.run(command, cwd=comfyui, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
