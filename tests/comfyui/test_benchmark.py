"""benchmarks/through_comfyui.py with a running server."""

import sys

import pytest

from benchmarks import through_comfyui


@pytest.mark.parametrize("family", ["ar", "flow"])
def test_an_image_is_timed_through_comfyui(server, family, monkeypatch, capsys):
    url = f"http://127.0.0.1:{server.port}"
    monkeypatch.setattr(sys, "argv", ["benchmark", "--url", url, "--family", family, "--runs", "1"])
    through_comfyui.main()
    assert "through ComfyUI" in capsys.readouterr().out


def test_a_failing_graph_is_reported(server):
    comfyui = through_comfyui.ComfyUI(f"http://127.0.0.1:{server.port}")
    graph = through_comfyui.graph("ar", "demo/janus-pro-demo", "default", "", 128, seed=0)
    graph["prompt"]["inputs"]["text"] = "word " * 5000
    with pytest.raises(SystemExit, match="too long"):
        comfyui.seconds(graph)
    with pytest.raises(SystemExit, match="refused.*no such model"):
        comfyui.seconds(through_comfyui.graph("ar", "no such model", "default", "", 128, seed=0))
