"""What is written survives kills, full disks and second writers; a few rounds of python -m tests.interrupted."""

import os

import pytest

from janus_core.errors import OutputError
from janus_core.files import write_atomically, write_text
from tests import interrupted


@pytest.mark.parametrize("task", interrupted.TASKS)
def test_interruptions(task):
    """Each round raises AssertionError for a part of a file or for what is left behind."""
    outcomes = interrupted.rounds(2, seed=1, names=[task])
    assert all(sum(outcome.values()) == 2 for outcome in outcomes.values())
    assert any("refused" in outcome for outcome in outcomes.values())


def test_a_failure_keeps_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail(file):
        file.write_text("some of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="x.txt could not be written .No space left on device."):
        write_atomically(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]

    def interrupt(file):
        file.write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupt)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


def test_other_errors_stay_what_they_are(tmp_path):
    def bug(file):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_atomically(tmp_path / "x", bug)


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "x.txt", "x")
    assert (tmp_path / "x.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
