"""Groups on Ray Data: an actor pool on one machine or a cluster; a group whose actor dies is run again by another."""

import json
import logging
import os
import secrets
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch

try:
    import ray
    import ray.data
except ImportError:
    from .outputs import BatchError

    raise BatchError("--engine ray needs Ray: `pip install -r requirements-scale.txt`.") from None

from .groups import Group, group_name
from .memory import batch_size_for
from .outputs import Output
from .progress import Progress, Stop, Stopped
from .worker import Result, Setup, Worker, load

PACKAGE = Path(__file__).resolve().parents[1]
MAX_BLOCKS = 1000  # of Ray Data; a block is run as a whole
CPUS_PER_WORKER = 4


class RayWorker:
    """A Worker inside of an actor.

    Attributes:
        max_attempts: of a group, which may be what ends its process.
    """

    max_attempts = 4

    def __init__(self, setup: dict, attempts: str):
        self.worker, self.attempts = Worker(Setup(**setup)), Path(attempts)

    def __call__(self, batch: dict) -> dict:
        results = [result for text in batch["group"] for result in self._run(json.loads(text))]
        return {"result": [json.dumps(asdict(result)) for result in results]}

    def _run(self, group: list[dict]) -> list[Result]:
        group = [Output.from_dict(values) for values in group]
        begun = self.attempts / group_name(group)
        before = len(begun.read_text()) if begun.exists() else 0
        if before >= self.max_attempts:
            error = f"its process ended {before} times while it was made"
            failed = [Result(output.path, output.job, "failed", error) for output in group]
            return [replace(failed[0], retries=before), *failed[1:]]
        begun.parent.mkdir(parents=True, exist_ok=True)
        with open(begun, "a") as file:
            file.write(".")
        results = self.worker.run(group)
        begun.unlink(missing_ok=True)
        first, *rest = results
        return [replace(first, retries=before), *rest]


class OnRay:
    """Runs the groups on Ray: on the cluster of RAY_ADDRESS, or else on this machine.

    Args:
        workers: how many; None is one per GPU, or per `cpus_per_worker`.
    """

    def __init__(self, setup: Setup, workers: int | None, cpus_per_worker: int | None):
        self.setup = setup
        self.own = not ray.is_initialized()
        if self.own:
            logging.getLogger("ray").setLevel(logging.ERROR)
            os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: the work of others would go first
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"py_modules": [str(PACKAGE)]},
            )
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        use_gpu = gpus > 0 and setup.device in (None, "cuda")
        per_worker = cpus_per_worker or max(1, min(CPUS_PER_WORKER, cpus // (workers or 1)))
        self.resources = {"num_cpus": per_worker, **({"num_gpus": 1} if use_gpu else {})}
        self.device = torch.device("cuda" if use_gpu else setup.device or "cpu")
        self.workers = workers or (gpus if use_gpu else max(1, cpus // per_worker))

    def find_batch_size(self) -> int:
        """What fits into a worker's memory; workers that share a machine's memory share it equally."""
        return ray.get(ray.remote(**self.resources)(_find_batch_size).remote(asdict(self.setup), self.workers))

    def run(self, groups: list[Group], setup: Setup, progress: Progress, stop: Stop):
        attempts = Path(setup.out).with_name(f"{Path(setup.out).name}.run") / "attempts" / secrets.token_hex(6)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"group": json.dumps([output.as_dict() for output in group])} for group in groups]
        done = (
            ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS))
            .map_batches(
                RayWorker,
                batch_size=1,
                fn_constructor_args=(asdict(setup), str(attempts)),
                compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(rows)), max_tasks_in_flight_per_actor=2),
                max_restarts=-1,
                max_task_retries=-1,
                **self.resources,
            )
            .iter_rows()
        )
        try:
            stop.raises = True
            if stop.signal is not None:  # it came while nothing looked, in find_batch_size for example
                return
            for row in done:
                progress.add(Result(**json.loads(row["result"])))
        except Stopped:
            pass
        finally:
            stop.raises = False
            if self.own:
                ray.shutdown()
            shutil.rmtree(attempts, ignore_errors=True)


def _find_batch_size(setup: dict, sharing: int) -> int:
    pipe = load(Setup(**setup))
    size = batch_size_for(pipe)
    while pipe.device.type == "cpu" and sharing > 1 and size > 1:
        size, sharing = size // 2, sharing // 2
    return size
