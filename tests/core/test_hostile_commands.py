"""The command line: strange paths, closed pipes, terminals without Unicode, Ctrl-C, too little memory."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from PIL import Image

from janus_core import cli, loading
from janus_core.cli import main
from tests.fuzz import commands
from tests.fuzz.case import judge
from tests.fuzz.models import write_tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path):
    return str(write_tiny("janus", tmp_path / "model"))


@pytest.mark.parametrize("number", range(60))
def test_strange_arguments(tmp_path, monkeypatch, number):
    """The fuzzer's own cases."""
    monkeypatch.chdir(tmp_path)
    case = commands.make(random.Random(f"hostile {number}"), tmp_path / "case")
    outcome, detail = judge(case)
    assert outcome in case.expected, (case.label, outcome, detail)


@pytest.mark.parametrize("out", ["/", ".", "folder", "/dev/null", "file/x.png", "~nosuchuser/x.png"])
def test_where_an_image_cannot_go_is_said_before_sampling(model, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: pytest.fail("loaded"))
    assert main(["generate", "a", "--model", model, "--out", out]) == 1
    assert "error: " in capsys.readouterr().err


def environment(**changes):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **changes}


def test_a_closed_pipe_loses_no_image(model, tmp_path):
    """`generate --count 3 | true`"""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "janus_core", "generate", "a", "--model", model, "--count", "3"]
    command += ["--out", str(tmp_path / "x.png"), "--device", "cpu"]
    result = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, env=environment(), text=True)
    os.close(write)
    assert result.returncode == 0 and "Traceback" not in result.stderr and "Broken" not in result.stderr
    for k in range(3):
        Image.open(tmp_path / f"x_{k:03}.png").load()


def test_an_ascii_terminal(model, tmp_path):
    command = [sys.executable, "-m", "janus_core", "generate", "a", "--model", model + "/ä", "--out", "ö.png"]
    ascii_only = environment(PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    result = subprocess.run(command, cwd=ROOT, env={**ascii_only, "PYTHONPATH": str(ROOT)}, capture_output=True)
    (ROOT / "ö.png").unlink(missing_ok=True)
    assert result.returncode == 1 and b"error: " in result.stderr and b"Traceback" not in result.stderr


def test_an_interrupt_while_importing(tmp_path):
    """A module in torch's place takes for ever to import."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "janus_core", "--version"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment(PYTHONPATH=str(tmp_path)), **pipes)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and error == "cancelled\n"


@pytest.mark.parametrize(
    "error,words",
    [
        (RuntimeError("could not create a primitive"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: not enough memory"), "out of memory"),
        (MemoryError(), "out of memory"),
        (OSError(28, "No space left on device"), "No space left on device."),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied."),
    ],
)
def test_what_the_system_refuses(model, monkeypatch, capsys, error, words):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading, "load", refuse)
    assert main(["describe", "x.png", "?", "--model", model]) == 1
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1


def test_a_bug_stays_a_traceback(model, monkeypatch):
    monkeypatch.setattr(cli, "load", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["describe", "x.png", "?", "--model", model])


def test_a_hub_that_lists_no_files(tmp_path, monkeypatch, capsys):
    info = SimpleNamespace(sha="a", siblings=None)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *a, **k: info))
    assert main(["download", "janus-pro-1b", "--to", str(tmp_path)]) == 1
    assert "has no pytorch_model.bin" in capsys.readouterr().err


def test_the_line_of_an_error_is_one_line(monkeypatch, capsys):
    def convert(args):
        raise cli.JanusError("two\nlines.")

    monkeypatch.setattr(cli, "convert", convert)
    assert main(["convert", "a", "b"]) == 1
    assert capsys.readouterr().err == "error: two lines.\n"
