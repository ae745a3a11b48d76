"""The part of `python -m benchmarks.gpu` that runs in ComfyUI's process, rehearsed on the CPU."""

import json
import subprocess
import sys

from benchmarks import ROOT


def test_the_part_in_comfyui(comfyui, tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--size", "tiny", "--device", "cpu", "--parts", "comfyui"]
    run = subprocess.run([*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.startswith("comfyui: done"), run.stderr
    cases = json.loads((tmp_path / "comfyui.json").read_text())["cases"]
    assert not {name: case["failed"] for name, case in cases.items() if "failed" in case}
    assert cases["dynamic, ar"]["lora_changes"] and "no dynamic loader" in cases["dynamic, 2 GB, ar"]["not_run"]
