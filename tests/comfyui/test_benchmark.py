"""benchmarks/through_comfyui.py at its small size."""

import json

import pytest

from benchmarks import soak, synthetic, through_comfyui
from benchmarks.workload import PARTS


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The checkpoints' cache, a temporary one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "CACHE", tmp_path_factory.mktemp("synthetic"))
        yield synthetic.CACHE


def measured(folder, *arguments) -> list[dict]:
    """The rows that the benchmark writes."""
    through_comfyui.main(["--size", "demo", "--threads", "1", "--folder", str(folder), *arguments])
    (path,) = folder.glob("through-comfyui-*.json")
    assert path.with_suffix(".md").is_file()
    return json.loads(path.read_text())["rows"]


def test_all_parts_loading_and_memory_are_measured(comfyui, tmp_path):
    timed, loaded = measured(tmp_path, "--family", "ar", "--weights", "default")
    for row in (timed, loaded):
        assert "error" not in row
        for name in ("comfyui", "core"):
            assert row["load"][name] > 0 and row["first"][name]["prompt"] > 0
            assert row["memory"][name]["first"]["peak"] > row["memory"][name]["loaded"]["private"] > row["file_bytes"]
    assert loaded["layout"] == "sharded-bin"
    assert set(timed["parts"]) == set(PARTS)
    assert all(len(times[name]) == 1 and times[name][0] > 0 for times in timed["parts"].values() for name in times)
    assert timed["weight_bytes"] > 0.9 * timed["file_bytes"]
    (table,) = (path.read_text() for path in tmp_path.glob("*.md"))
    assert "| default |" in table and "| sharded-bin |" in table and " ms" not in table and "Failed" not in table


def test_a_running_comfyui_is_measured_and_a_failing_row_leaves_the_others(server, cache, tmp_path):
    checkpoint = synthetic.synthetic_checkpoint("flow", "demo")
    (server.base / "models" / "janus" / checkpoint.name).symlink_to(checkpoint, target_is_directory=True)
    url = ["--url", f"http://127.0.0.1:{server.port}"]
    failed, timed = measured(tmp_path, "--family", "ar", "flow", "--weights", "default", "--parts", "step", *url)
    assert "ar-demo-safetensors" in failed["error"]
    assert "error" not in timed and set(timed["parts"]) == {"step"}
    assert timed["memory"]["comfyui"]["end"] is None
    assert "ar-demo-safetensors" in next(tmp_path.glob("*.md")).read_text()


def test_a_short_soak(comfyui, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "EVERY", 4)
    assert soak.main(["--runs", "6", "--folder", str(tmp_path)]) == 0
    text = (tmp_path / "soak.md").read_text()
    assert "6 runs of 14 templates" in text and "0 failed" in text and "\n| 4 | " in text and "\n| 6 | " in text


def test_a_soak_fails_on_growth_other_images_and_errors():
    flat = [(runs, 500, True) for runs in (25, 100, 125)]
    assert soak.Soak(rows=flat).passed and soak.Soak(rows=[(25, 100, True), *flat]).passed
    assert not soak.Soak(rows=[*flat, (150, 530, True)]).passed
    assert not soak.Soak(rows=[*flat, (150, 500, False)]).passed
    assert not soak.Soak(rows=flat, outcomes=soak.Counter({soak.FAILED: 1})).passed
