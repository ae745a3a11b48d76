"""The report of `python -m janus_core doctor`."""

import pytest
import torch
from cpu_graph import capture

from janus_core import doctor
from janus_core.cli import main

CPU = torch.device("cpu")


def test_the_report_of_a_cpu(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "models_folder", lambda: tmp_path / "models")
    (tmp_path / "comfyui_version.py").write_text('# made by its build\n__version__ = "0.33.0"\n')
    janus = tmp_path / "models" / "janus"
    (janus / "broken").mkdir(parents=True)
    (janus / "model.safetensors").write_bytes(doctor.DEMO.joinpath("model.safetensors").read_bytes())
    assert main(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "- ComfyUI 0.33.0" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text and "cores" in text
    assert "plain steps on cpu in " in text and "CUDA graphs: not run" in text
    assert "broken: CheckpointError" in text and "model.safetensors: " in text and str(tmp_path) not in text


@pytest.mark.skipif(torch.__version__ < "2.6", reason="this torch cannot replay its operations on a CPU")
def test_a_captured_step_is_compared_with_the_plain_one(monkeypatch):
    monkeypatch.setattr(doctor, "capture_for", lambda device, enabled: capture)
    monkeypatch.setattr("janus_core.pipeline.capture_for", lambda device, enabled: capture if enabled else None)
    _, graph, triton = doctor.self_test(CPU, doctor.DEMO)
    assert graph.startswith("CUDA graph: 100%") and triton.startswith("CUDA graph with the Triton decoder: 100%")


def test_a_missing_demo_is_said(tmp_path):
    (row,) = doctor.self_test(CPU, tmp_path)
    assert row.startswith("not run: ")
