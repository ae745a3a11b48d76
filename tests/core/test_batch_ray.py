"""Batch runs on Ray: an actor that dies in the middle of a batch, and one that always dies."""

import importlib.util
import json
import os
import signal

import pytest
from batch_proofs import files_of

from janus_core.batch.manifest import Defaults, read_outputs
from janus_core.batch.outputs import BatchError
from janus_core.batch.run import Options, run_batch
from janus_core.batch.worker import Setup

PROMPTS = ["a red circle on a blue background", "a cat", "a green square", "a dog left of a cat", "an orange cross"]
HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install -r requirements-scale.txt")
def test_an_actor_that_dies_loses_nothing_and_one_that_always_dies_is_reported(golden, tmp_path, monkeypatch):
    from janus_core.batch import ray_engine

    marker = str(tmp_path / "died")

    class Dying(ray_engine.RayWorker):
        """Ends its process in the middle of the first batch, and whenever it gets the job named `poison`."""

        max_attempts = 2

        def __init__(self, setup, attempts):
            super().__init__(setup, attempts)
            run = self.worker.run

            def dying(group):
                def callback(done, total):
                    if done == total // 2 and (group[0].job == "poison" or not os.path.exists(marker)):
                        open(marker, "w").close()
                        os._exit(1)

                return run(group, callback)

            self.worker.run = dying

    jobs = tmp_path / "jobs.jsonl"
    rows = [{"id": f"{k}", "prompt": prompt} for k, prompt in enumerate(PROMPTS)]
    jobs.write_text("\n".join(map(json.dumps, rows)))
    setup = Setup(model=str(golden("ar-a").folder), out=str(tmp_path / "one"), device="cpu", dtype="float32", threads=1)
    outputs, _ = read_outputs(jobs, "generate", Defaults(seed=3))
    run_batch(outputs, setup, Options(batch_size=2))
    monkeypatch.setattr(ray_engine, "RayWorker", Dying)
    jobs.write_text("\n".join(map(json.dumps, [*rows, {"id": "poison", "prompt": "a cat", "guidance": 1.0}])))
    outputs, _ = read_outputs(jobs, "generate", Defaults(seed=3))
    setup = Setup(model=str(golden("ar-a").folder), out=str(tmp_path / "ray"), device="cpu", dtype="float32", threads=1)
    summary = run_batch(outputs, setup, Options(batch_size=2, engine="ray", workers=2, cpus_per_worker=1))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "one")
    assert (summary["done"], summary["failed"], summary["retries"]) == (5, 1, 1 + Dying.max_attempts)
    assert summary["failures"][0]["job"] == "poison" and "2 times" in summary["failures"][0]["error"]


@pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install -r requirements-scale.txt")
def test_a_signal_before_the_first_group_ends_the_run(golden, tmp_path, monkeypatch):
    from janus_core.batch import ray_engine

    def interrupted(engine):
        os.kill(os.getpid(), signal.SIGINT)
        return 2

    monkeypatch.setattr(ray_engine.OnRay, "find_batch_size", interrupted)
    (tmp_path / "jobs.txt").write_text("a cat\n")
    outputs, _ = read_outputs(tmp_path / "jobs.txt", "generate", Defaults())
    setup = Setup(model=str(golden("ar-a").folder), out=str(tmp_path / "out"), device="cpu", dtype="float32", threads=1)
    with pytest.raises(KeyboardInterrupt):
        run_batch(outputs, setup, Options(engine="ray", workers=1, cpus_per_worker=1))
    summary = json.loads((tmp_path / "out.run" / "summary.json").read_text())
    assert summary["interrupted"] and summary["done"] == 0 and not files_of(tmp_path / "out")
    assert not ray_engine.ray.is_initialized()


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_one_sentence_names_the_remedy(golden, tmp_path):
    (tmp_path / "jobs.txt").write_text("a cat")
    outputs, _ = read_outputs(tmp_path / "jobs.txt", "generate", Defaults())
    setup = Setup(model=str(golden("ar-a").folder), out=str(tmp_path / "out"))
    with pytest.raises(BatchError, match="requirements-scale.txt"):
        run_batch(outputs, setup, Options(engine="ray"))
