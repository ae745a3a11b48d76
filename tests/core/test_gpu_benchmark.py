"""`python -m benchmarks.gpu` is rehearsed on the CPU: every part runs, or says why not."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")
from benchmarks import ROOT  # noqa: E402
from benchmarks.gpu import worker  # noqa: E402
from benchmarks.gpu.parts import PARTS, Context, NotRun  # noqa: E402
from benchmarks.gpu.tables import document  # noqa: E402

TWINS = {"faults-async": "faults", "ar-7b": "ar-1b", "batches-7b": "batches-1b"}  # the same runs on small models
PART_NAMES = [name for name in PARTS if name not in {"comfyui", *TWINS}]  # tests/comfyui runs that one


def command(folder, *arguments):
    line = [sys.executable, "-m", "benchmarks.gpu", "--size", "tiny", "--device", "cpu", "--out", folder, *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(torch.__version__ < "2.6", reason="this torch cannot replay its operations on a CPU")
def test_a_rehearsal_on_the_cpu(tmp_path):
    run = command(tmp_path, "--parts", *PART_NAMES)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[:-1] == [f"{name}: done" for name in PART_NAMES]
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in PART_NAMES}
    for name, result in found.items():
        assert result["done"] and result["cases"], name
        failed = {case: values["failed"] for case, values in result["cases"].items() if "failed" in values}
        assert not failed, (name, failed)
    ran = {name for name, result in found.items() if any("not_run" not in v for v in result["cases"].values())}
    assert ran == {name for name in PART_NAMES if not name.endswith("-async")}
    assert all(0 < case["error"] < 1e-5 for case in found["kernels"]["cases"].values() if "error" in case)
    text = (tmp_path / "gpu.md").read_text()
    assert "**Not measured on a GPU**" in text and all(f"(`{name}`)" in text for name in PART_NAMES)
    again = command(tmp_path, "--parts", "kernels", "faults")
    assert again.stdout.splitlines()[:2] == ["kernels: done before", "faults: done before"]


@pytest.mark.parametrize("name", TWINS)
def test_a_part_that_is_not_rehearsed_has_the_cases_of_its_twin(name, tmp_path):
    def cases(part):
        return [case for case, _ in PARTS[part].cases(Context("cpu", True, tmp_path))]

    assert cases(name) == cases(TWINS[name])


def test_a_run_without_time_left_says_so(tmp_path):
    run = command(tmp_path, "--parts", "kernels", "--budget", "1")
    assert run.returncode == 0 and run.stdout.startswith("kernels: not begun")


def test_real_sizes_need_a_gpu(tmp_path):
    line = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", tmp_path]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "--size tiny" in run.stderr


def fails():
    raise ValueError("broken")


def refuses():
    raise NotRun("no such device")


def test_a_part_continues_after_what_ended_it(tmp_path, monkeypatch):
    """A case that failed or ended the process is not run again, and does not keep the others from running."""
    calls = []

    def cases(context):
        yield "crashed", lambda: calls.append("crashed")
        yield "fails", fails
        yield "refuses", refuses
        yield "works", lambda: calls.append("works") or {"value": 1.5}

    monkeypatch.setattr(type(PARTS["kernels"]), "cases", lambda part, context: cases(context))
    before = {"cases": {"crashed": worker.BEGAN}, "done": False}
    (tmp_path / "kernels.json").write_text(json.dumps(before))
    worker.run_part("kernels", tmp_path, Context("cpu", True, tmp_path))
    result = json.loads((tmp_path / "kernels.json").read_text())
    assert result["done"] and calls == ["works"]
    assert "ended" in result["cases"]["crashed"]["failed"] and "broken" in result["cases"]["fails"]["failed"]
    text = document({"kernels": result})
    for part in ("failed: ValueError: broken", "not run: no such device", "| 1.5 |  |", "during this case"):
        assert part in text, part


def test_goals_are_shares_and_ratios():
    def part(name, **cases):
        return {"part": name, "title": name, "hardware": "NVIDIA H200", "done": True, "cases": cases, **INFO}

    triton = {"of_floor": 0.5, "s_per_token": 2}
    results = {
        "ar-1b": part("ar-1b", **{"bf16, triton": triton, "transformers": {"s_per_token": 30}}),
        "flow-1b": part("flow-1b", **{"bf16, plain": {"s_per_step": 2.2}, "bf16, graph": {"s_per_step": 2}}),
    }
    text = document(results)
    assert "| 1B: share of the floor | >= 60% | 50% |" in text
    assert "| 1B: times as fast as transformers | >= 10 | 15.00 |" in text
    assert "| capture of the flow's step | >= 1.05 | 1.10 |" in text and "Not measured" not in text


INFO = {key: "x" for key in ("commit", "date", "python", "torch", "transformers")}
