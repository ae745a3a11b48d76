"""The benchmarks' baselines compute what janus_core computes, and their results say how they were measured."""

import json
import subprocess

import pytest
import torch
from cpu_graph import capture

pytest.importorskip("transformers")
from benchmarks import AR, RESULTS, baselines, report, speed, through_comfyui_tables  # noqa: E402
from janus_core.checkpoint import build_model, read_checkpoint  # noqa: E402
from janus_core.sampling import flow  # noqa: E402


@torch.inference_mode()
def test_the_original_flow_loop_gives_the_same_latents():
    baseline = baselines.TransformersFlow("demo", torch.device("cpu"), torch.float32)
    model = build_model(baseline.checkpoint)
    torch.manual_seed(0)
    embeds, z = torch.randn(2, 7, 192), torch.randn(1, 4, 16, 16)
    visible = torch.ones(2, 7, dtype=torch.bool)
    visible[1, 1:] = False
    expected = baseline.generate(embeds, visible, z, 3)
    cond, uncond = (flow.PromptEmbeds(embeds[k : k + 1], visible[k : k + 1]) for k in range(2))
    velocity = flow.guided_velocity(model, cond, uncond, z, 2.0)
    *_, last = flow.integrate(velocity, z, flow.flow_times(3))
    assert not torch.allclose(expected, z, atol=0.1)
    torch.testing.assert_close(last.z, expected, atol=1e-4, rtol=0)


def test_an_invalid_original_repository_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("JANUS_REFERENCE", str(tmp_path))
    with pytest.raises(SystemExit, match="not a checkout of deepseek-ai/Janus"):
        baselines.original_repository()


def test_cuda_graphs_and_the_triton_decoder_are_measured_separately(monkeypatch):
    model = build_model(read_checkpoint(AR))
    x = torch.zeros(2, 192)
    assert list(speed.decode_loops(model, x)) == [""]
    monkeypatch.setattr(speed, "capture_for", lambda device, enabled: capture)
    assert list(speed.decode_loops(model, x)) == ["", ", CUDA graph"]
    monkeypatch.setattr(speed.triton_decoder, "usable", lambda llama, x: True)
    loops = speed.decode_loops(model, x)
    assert [loops[name].keywords["triton"] for name in (", CUDA graph", ", CUDA graph + Triton")] == [False, True]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_table_is_that_of_its_data(path):
    table = through_comfyui_tables.tables if path.stem.startswith("through-comfyui") else speed.table
    assert path.with_suffix(".md").read_text(encoding="utf-8") == table(json.loads(path.read_text()))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.md")), ids=lambda path: path.stem)
def test_a_committed_result_says_how_it_was_measured(path):
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("Measured at commit ") and "dirty" not in first_line


def test_the_commit_of_a_result(tmp_path):
    def git(*args):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
        subprocess.run(["git", *identity, "-C", tmp_path, *args], check=True, capture_output=True)

    pack = tmp_path / "pack"
    pack.mkdir()
    git("init")
    assert report.commit(pack) == "unknown"  # the repository around the pack is not its own
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "code")
    clean = report.commit(tmp_path)
    assert len(clean) >= 7 and "-" not in clean
    (tmp_path / "code.py").write_text("2")
    assert report.commit(tmp_path) == f"{clean}-dirty"
