"""Downloads from a fake hub: which files are chosen, where they go, and errors."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError

import janus_core
from janus_core import JanusError, download
from janus_core.cli import main

ROOT = Path(__file__).resolve().parents[2]
JSON = {"config.json": 10, "tokenizer.json": 20, "tokenizer_config.json": 5, "processor_config.json": 5}
OTHER = {"README.md": 9, "LICENSE": 9, "figures/teaser.png": 9, "figures/list.json": 9}


class Hub:
    """Repositories as {file: size}; `error`, if set, is raised by the next call."""

    def __init__(self):
        self.repos, self.error, self.requested = {}, None, None

    def model_info(self, repo, files_metadata):
        assert files_metadata
        if self.error:
            raise self.error
        files = [SimpleNamespace(rfilename=name, size=size) for name, size in self.repos[repo].items()]
        return SimpleNamespace(sha="abc", siblings=files)

    def snapshot_download(self, repo, *, revision, local_dir, allow_patterns):
        assert revision == "abc"
        self.requested = set(allow_patterns)
        for name in allow_patterns:
            path = Path(local_dir) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(self.repos[repo][name]))


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def http_error(kind, status):
    """An error of huggingface_hub, whose constructors differ between its versions."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} Client Error: something.\nRequest ID: 1")
    return error


@pytest.mark.parametrize(
    "weights,chosen",
    [
        ({"pytorch_model.bin": 40}, {"pytorch_model.bin"}),
        ({"model.safetensors": 40, "pytorch_model.bin": 40}, {"model.safetensors"}),
        ({"model.safetensors": 40, "pytorch_model.bin.index.json": 3}, {"model.safetensors"}),
        (
            {"pytorch_model.bin.index.json": 3, "pytorch_model-00001-of-00001.bin": 4, "other.bin": 4},
            {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"},
        ),
        (
            {"model.safetensors.index.json": 3, "model-00001-of-00001.safetensors": 4, "pytorch_model.bin": 40},
            {"model.safetensors.index.json", "model-00001-of-00001.safetensors"},
        ),
    ],
)
def test_one_set_of_weights_and_the_json_files_are_downloaded(hub, tmp_path, capsys, weights, chosen):
    hub.repos["deepseek-ai/Janus-Pro-1B"] = {**JSON, **OTHER, **weights}
    assert main(["download", "janus-pro-1b", "--to", str(tmp_path)]) == 0
    assert hub.requested == {*JSON, *chosen}
    folder = tmp_path / "janus" / "Janus-Pro-1B"
    assert {path.name for path in folder.iterdir()} == hub.requested
    assert capsys.readouterr().out.strip() == str(folder)


def test_the_vae_alone_and_with_a_checkpoint(hub, tmp_path, capsys):
    hub.repos["stabilityai/sdxl-vae"] = {"sdxl_vae.safetensors": 7, "diffusion_pytorch_model.safetensors": 7}
    hub.repos["deepseek-ai/JanusFlow-1.3B"] = {**JSON, "model.safetensors": 40}
    assert main(["download", "--vae", "--to", str(tmp_path / "a")]) == 0
    assert [path.name for path in (tmp_path / "a" / "vae").iterdir()] == ["sdxl_vae.safetensors"]
    assert main(["download", "janusflow-1.3b", "--vae", "--to", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "vae" / "sdxl_vae.safetensors").is_file()
    assert (tmp_path / "b" / "janus" / "JanusFlow-1.3B" / "model.safetensors").is_file()
    assert capsys.readouterr().out.count("sdxl_vae.safetensors") == 2


def test_every_release_has_its_own_repository_and_folder(hub, tmp_path):
    for name, release in download.CHECKPOINTS.items():
        hub.repos[release.repo] = {**JSON, **dict.fromkeys(release.weights, 4)}
        assert download.download_checkpoint(name, tmp_path).name.lower() == name
        assert hub.requested == {*JSON, *release.weights}


def test_complete_and_partial_files_need_no_more_space(hub, tmp_path, monkeypatch):
    hub.repos["deepseek-ai/Janus-1.3B"] = {**JSON, "model.safetensors": 1000}
    folder = tmp_path / "janus" / "Janus-1.3B"

    def fits(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        return main(["download", "janus-1.3b", "--to", str(tmp_path)]) == 0

    assert not fits(1039)
    assert not folder.exists()
    part = folder / ".cache" / "huggingface" / "download" / "x.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(600))
    assert not fits(439)
    assert fits(440)
    part.unlink()
    assert fits(0)


@pytest.mark.parametrize(
    "error,words",
    [
        (http_error(RepositoryNotFoundError, 401), "no repository deepseek-ai/Janus-Pro-7B"),
        (http_error(HfHubHTTPError, 503), "503 Client Error"),
        (ConnectionError("Name or service not known"), "check the network"),
        (OSError(28, "No space left on device"), "No space left"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_errors_are_one_line_with_status_1(hub, tmp_path, capsys, error, words):
    hub.error = error
    assert main(["download", "janus-pro-7b", "--to", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]


def test_a_full_disk_is_noticed_before_the_download(hub, tmp_path, capsys, monkeypatch):
    hub.repos["deepseek-ai/Janus-Pro-7B"] = {**JSON, "pytorch_model.bin": 14_800_000_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000_000))
    assert main(["download", "janus-pro-7b", "--to", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "needs 14.8 GB" in error and "2.0 GB free" in error and hub.requested is None


def test_a_repository_without_weights(hub, tmp_path, capsys):
    hub.repos["deepseek-ai/Janus-Pro-1B"] = {**JSON, **OTHER}
    assert main(["download", "janus-pro-1b", "--to", str(tmp_path)]) == 1
    assert "pytorch_model.bin" in capsys.readouterr().err


def test_a_download_needs_a_name(capsys):
    assert main(["download"]) == 1
    error = capsys.readouterr().err
    assert "--vae" in error and all(name in error for name in download.CHECKPOINTS)


def test_without_the_hub_library(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(JanusError, match="pip install huggingface_hub"):
        download.download_vae(tmp_path)


def test_the_models_folder_of_the_surrounding_comfyui(tmp_path):
    assert download.models_folder(tmp_path / "ComfyUI" / "custom_nodes" / "janus") == tmp_path / "ComfyUI" / "models"
    assert download.models_folder(tmp_path / "janus") == Path("models")


@pytest.mark.parametrize("name", ["Janus-Pro-1B", "janus-pro-1b.safetensors", "somewhere/Janus-Pro-1B"])
def test_advice_for_an_official_checkpoint(tmp_path, name):
    advice = download.how_to_get(name, tmp_path)
    assert advice.startswith(f"Run `{download.command('janus-pro-1b', tmp_path)}`")
    assert "config.json" in advice and "pytorch_model.bin" in advice
    assert str(tmp_path / "janus" / "Janus-Pro-1B") in advice


def test_advice_for_another_checkpoint(tmp_path):
    advice = download.how_to_get("mine.safetensors", download.models_folder())
    assert " download NAME`" in advice and all(name in advice for name in download.CHECKPOINTS)


def test_the_command_runs_this_python_from_any_folder(tmp_path):
    """Also an isolated one, which like that of ComfyUI's Windows archive does not look in the current folder."""
    words = shlex.split(download.command("--vae", tmp_path))
    assert words == [sys.executable, str(ROOT / "janus_core"), "download", "--vae", "--to", str(tmp_path)]
    result = subprocess.run(
        [words[0], "-I", words[1], "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == janus_core.__version__


def test_paths_with_blanks_are_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my python"))
    assert shlex.split(download.command("--vae", Path("my models")))[0] == sys.executable
    monkeypatch.setattr(download, "os", SimpleNamespace(name="nt"))
    monkeypatch.setattr(sys, "executable", r"C:\my apps\python.exe")
    assert download.command("--vae", download.models_folder()).startswith('"C:\\my apps\\python.exe" ')
