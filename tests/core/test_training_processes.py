"""Training in two processes: equal to one process that accumulates as many batches; only one process writes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from janus_core import training
from tests.fuzz.models import write_tiny
from tests.fuzz.training import config_of

ROOT = Path(__file__).resolve().parents[2]
LORA = {"rank": 4, "targets": ["q_proj", "down_proj"]}
LOOP = {"steps": 4, "lr": 1e-2, "warmup": 1, "precision": "no", "log_every": 2, "save_every": 2, "workers": 0}
FSDP = ROOT / "janus_core" / "training" / "configs" / "fsdp_8_gpus.yaml"


def write_config(folder: Path, work: Path, **changes) -> Path:
    """A config of a tiny model whose run goes to `folder`."""
    config = {**config_of(folder), "checkpoint": str(work / "base"), "stage": 3, "loop": LOOP}
    if not (work / "base").exists():
        write_tiny("janus", work / "base")
    path = folder / "config.json"
    path.write_text(json.dumps({**config, **changes, "loop": {**LOOP, **changes.get("loop", {})}}))
    return path


def start(*command) -> list[subprocess.Popen]:
    """Starts two processes as torchrun does, which could not be killed with its workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            **pipes,
        )
        for rank in range(2)
    ]


def launch(*command) -> str:
    """Runs two processes; returns what they print."""
    processes = start(*command)
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs):
        assert process.returncode == 0, errors[-3000:]
    return "".join(output for output, _ in outputs)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found = folder / "out" / "lora.safetensors"
    found = found if found.exists() else folder / "out" / "checkpoint" / "model.safetensors"
    return {name: tensor.float() for name, tensor in load_file(found).items()}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_train_as_one_that_accumulates(tmp_path, kind):
    changes = {"lora": LORA} if kind == "lora" else {}
    alone = write_config(tmp_path / "one", tmp_path, **changes, loop={"accumulate": 2})
    training.run(alone)
    output = launch("-m", "janus_core", "train", "--config", write_config(tmp_path / "two", tmp_path, **changes))
    assert output.count('"step": 2') == 1, "the main process alone prints"
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-3, rtol=1e-2, msg=name)
    logs = [(tmp_path / name / "out" / "run" / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[1]) == 2
    for a, b in zip(*(map(json.loads, log) for log in logs)):
        assert a["generation"] == pytest.approx(b["generation"], abs=1e-4), "averaged over the processes"


def test_two_processes_that_are_killed_resume(tmp_path):
    options = {"lora": LORA, "loop": {"steps": 40, "save_every": 5}}
    whole = write_config(tmp_path / "whole", tmp_path, **options)
    killed = write_config(tmp_path / "killed", tmp_path, **options)
    launch("-m", "janus_core", "train", "--config", whole)
    state = tmp_path / "killed" / "out" / "run" / "state.pt"
    processes = start("-m", "janus_core", "train", "--config", killed)
    deadline = time.monotonic() + 200
    while not state.exists() and processes[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        process.kill()  # SIGKILL
        process.communicate()
    assert state.exists() and not (tmp_path / "killed" / "out" / "lora.safetensors").exists()
    launch("-m", "janus_core", "train", "--config", killed)
    one, two = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_fsdp_trains_as_two_processes_do(tmp_path):
    loop = {"ema": 0.9}
    launch("-m", "janus_core", "train", "--config", write_config(tmp_path / "ddp", tmp_path, loop=loop))
    script = Path(__file__).with_name("fsdp_on_cpu.py")
    config = write_config(tmp_path / "fsdp", tmp_path, loop=loop, gradient_checkpointing=True)
    launch(script, config, FSDP)
    ddp, fsdp = weights_of(tmp_path / "ddp"), weights_of(tmp_path / "fsdp")
    assert ddp.keys() == fsdp.keys()
    for name in ddp:
        torch.testing.assert_close(ddp[name], fsdp[name], atol=2e-3, rtol=2e-2, msg=name)
