"""The modules of nodes/ that need little of ComfyUI: listing hostile model folders, and the names of errors."""

import copy
import importlib
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.fuzz.models import write_tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def nodes(tmp_path, monkeypatch):
    """Imports a module of nodes/ as ComfyUI does, with a janus_core of its own; models are in tmp_path/janus."""
    host = SimpleNamespace(models_dir=str(tmp_path), get_folder_paths=lambda key: [str(tmp_path / key)])
    modules = {"folder_paths": host, "pack": ModuleType("pack"), "pack.nodes": ModuleType("pack.nodes")}
    modules["pack"].__path__, modules["pack.nodes"].__path__ = [str(ROOT)], [str(ROOT / "nodes")]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield lambda name: importlib.import_module(f"pack.nodes.{name}")
    for name in [name for name in sys.modules if name.startswith("pack.")]:
        del sys.modules[name]


def deep(folder):
    (folder / "config.json").write_text('{"a": ' + "[" * 100000)


def digits(folder):
    (folder / "config.json").write_text('{"a": ' + "1" * 5000 + "}")


def deep_index(folder):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text("[" * 100000)


def fifo_config(folder):
    os.mkfifo(folder / "config.json")


def no_config(folder):
    (folder / "tokenizer.json").write_text("{}")


def looped_config(folder):
    (folder / "config.json").symlink_to("config.json")


FOLDERS = (deep, digits, deep_index, fifo_config, no_config, looped_config)


@pytest.mark.parametrize("spoil", FOLDERS)
def test_a_folder_that_cannot_be_read_is_left_out_and_logged_once(nodes, tmp_path, caplog, spoil):
    folders = nodes("folders")
    write_tiny("janus", tmp_path / "janus" / "good")
    bad = tmp_path / "janus" / "bad"
    bad.mkdir()
    spoil(bad)
    for _ in range(3):
        assert "good" in folders.names("janus") and "bad" not in folders.names("janus") + folders.names("janusflow")
    assert len([record for record in caplog.records if str(bad) in record.message]) == 1
    for file in bad.iterdir():
        file.unlink()
    shutil.copytree(tmp_path / "janus" / "good", bad, dirs_exist_ok=True)
    os.utime(bad, (1, 1))  # another time, whatever the clock's steps
    assert "bad" in folders.names("janus")


def test_a_pipe_and_junk_among_the_single_files_are_left_out(nodes, tmp_path, caplog):
    folders = nodes("folders")
    (tmp_path / "janus").mkdir()
    os.mkfifo(tmp_path / "janus" / "x.safetensors")
    (tmp_path / "janus" / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "janus" / "link.safetensors").symlink_to("nowhere")
    for family in ("janus", "janusflow"):
        assert all(name.startswith("demo/") for name in folders.names(family))
    for name in ("x", "junk", "link"):
        assert len([r for r in caplog.records if f"{name}.safetensors" in r.message]) == 1
    assert folders.path_of("junk.safetensors").name == "junk.safetensors"  # loading it says what is wrong


def test_errors_have_a_short_name_and_stay_what_they_are(nodes):
    nodes("error_names").register()
    errors = sys.modules["pack.janus_core.errors"]
    for kind in (errors.JanusError, errors.SamplingError, errors.DownloadError):
        assert (kind.__module__, kind.__qualname__) == ("builtins", "JanusError")
        for again in (pickle.loads(pickle.dumps(kind("a"))), copy.deepcopy(kind("a"))):
            assert type(again) is kind and again.args == ("a",)
        with pytest.raises(errors.JanusError):
            raise kind("a")
    assert not issubclass(errors.SamplingError, errors.PromptError)
