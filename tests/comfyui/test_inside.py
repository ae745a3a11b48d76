"""What a CPU server does not show, checked inside a process that has ComfyUI's modules."""

import subprocess
from pathlib import Path

from server import python_of


def test_inside_comfyui(comfyui):
    script = Path(__file__).with_name("inside.py")
    result = subprocess.run([python_of(comfyui), str(script)], cwd=comfyui, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.endswith("fine\n"), result.stderr[-2000:]
