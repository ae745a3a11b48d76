"""Interrupts everything that writes files: killed at random moments, on a full disk, and with a second writer.

python -m tests.interrupted --rounds 20

Afterwards each file must be the old one or the new one, never a part; where the writer lived to report it, nothing may
be left behind.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from janus_core import captions, cli, training
from janus_core.checkpoint import quantized, read_checkpoint, save_single_file
from janus_core.checkpoint.files import read_pickle
from janus_core.errors import JanusError
from tests.fuzz.models import digest, tiny, write_tiny

REPORTED = 3  # exit status of a child whose writer raised a JanusError


class Task:
    """Something that writes into a folder of its own.

    `prepare` makes the old files, `work` writes the new ones, and `check` raises AssertionError for a part of one.
    """

    def __init__(self, model: Path, folder: Path):
        self.model, self.folder = model, folder
        folder.mkdir(parents=True)
        self.prepare()

    def prepare(self):
        pass


class Convert(Task):
    def prepare(self):
        self.out = self.folder / "out.safetensors"
        save_single_file(quantized(read_checkpoint(self.model), "int8"), self.out)
        self.old = digest(self.out)

    def work(self):
        assert cli.main(["convert", str(self.model), str(self.out)]) == 0

    def check(self):
        found = digest(self.out)
        assert found in (self.old, digest(self.model))
        return "old" if found == self.old else "new"


class Generate(Task):
    def prepare(self):
        self.out = self.folder / "out.png"
        Image.effect_noise((64, 64), 99).save(self.out)
        self.old = self.out.read_bytes()

    def work(self):
        arguments = ["--model", str(self.model), "--out", str(self.out), "--device", "cpu"]
        assert cli.main(["generate", "a cat", *arguments]) == 0

    def check(self):
        with Image.open(self.out) as image:
            image.load()
        return "old" if self.out.read_bytes() == self.old else "new"


class Caption(Task):
    """The part of Janus Caption Folder that writes."""

    texts = ("an old caption " * 50, "a new caption " * 800)

    def prepare(self):
        for k in range(30):
            (self.folder / f"{k}.png").touch()
        self.write(self.texts[0])

    def write(self, text):
        for image in captions.image_files(self.folder):
            captions.write_caption(image, text)

    def work(self):
        self.write(self.texts[1])

    def check(self):
        found = {captions.read_caption(image) for image in captions.image_files(self.folder)}
        assert found <= {text.strip() for text in self.texts}, "a part of a caption"
        return "new" if self.texts[1].strip() in found else "old"


class Train(Task):
    def prepare(self):
        images = self.folder / "images"
        images.mkdir()
        for k in range(2):
            Image.new("RGB", (20, 16), (90 * k, 50, 50)).save(images / f"{k}.png")
            (images / f"{k}.txt").write_text(f"caption {k}")
        self.config, self.run = self.folder / "config.json", self.folder / "out" / "run"
        loop = {"steps": 4, "lr": 1e-3, "warmup": 1, "precision": "no", "log_every": 1, "save_every": 1}
        common = {"checkpoint": str(self.model), "images": str(images), "folder": str(self.folder / "out")}
        config = {"task": "finetune", **common, "seed": 0, "stage": 1, "rows": 2, "ratio": [1, 1], "loop": loop}
        self.config.write_text(json.dumps(config))

    def work(self):
        training.run(self.config)

    def check(self):
        steps = 0
        if (self.run / "state.pt").exists():
            steps = read_pickle(self.run / "state.pt")["step"]
        if (self.run / "log.jsonl").exists():
            for line in (self.run / "log.jsonl").read_text().splitlines():
                json.loads(line)
        written = self.folder / "out" / "checkpoint"
        if (written / "model.safetensors").exists():
            digest(written)
            return "new"
        return f"state of step {steps}"


TASKS = {"convert": Convert, "generate": Generate, "caption": Caption, "train": Train}


def child(function, file_size: int | None = None) -> int:
    """Runs a function in a copy of this process; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                function()
                status = 0
            except JanusError:
                status = REPORTED
            except AssertionError:  # the command line has reported it
                if errors.getvalue().count("error: ") != 1:
                    raise
                status = REPORTED
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files_of(task: Task) -> set[str]:
    return {str(path.relative_to(task.folder)) for path in task.folder.rglob("*")}


def killed(task: Task, rng: random.Random, duration: float) -> str:
    """Kills the writer at a random moment."""
    pid = child(task.work)
    time.sleep(rng.random() * duration)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    result = task.check()
    if rng.random() < 0.3 or isinstance(task, Train):  # and the next run is not disturbed
        assert wait(child(task.work)) == 0 and task.check() == "new"
    return result


def full_disk(task: Task, rng: random.Random, largest: int) -> str:
    """Lets no file become larger than a random size."""
    before = files_of(task)
    status = wait(child(task.work, int(largest * rng.random())))
    assert status in (0, REPORTED), f"exit status {status}"
    left = [name for name in files_of(task) - before if name.endswith(".tmp")]
    assert not left, left
    task.check()
    return "refused" if status else "fitted"


def two_writers(model: Path, folder: Path) -> str:
    """Two commands write one file at once; a file of the user's own with a similar name stays."""
    task = Convert(model, folder)
    (folder / "out.partial").write_text("mine")
    save_single_file(quantized(read_checkpoint(model), "int8"), task.out)
    first = child(lambda: cli.main(["convert", str(model), str(task.out)]))
    second = child(lambda: cli.main(["convert", str(model), str(task.out), "--weights", "int8"]))
    assert wait(first) == wait(second) == 0
    assert (folder / "out.partial").read_text() == "mine" and files_of(task) == {"out.safetensors", "out.partial"}
    return task.check()


@contextlib.contextmanager
def small_disk(size: int):
    """A folder on a disk of `size` bytes; None where that is not allowed."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        mounted = subprocess.run(options, capture_output=True, check=False).returncode == 0
        try:
            yield Path(folder) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)


def small_disk_round(kind, model: Path, rng: random.Random, largest: int) -> str:
    """A real full disk, which has less room than the largest new file needs."""
    with small_disk(16 * 2**20) as disk:
        if disk is None:
            return "not allowed here"
        task = kind(model, disk / "task")
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(max(0, free - rng.randrange(largest))))
        status = wait(child(task.work))
        assert status in (0, REPORTED), f"exit status {status}"
        assert not list(disk.rglob("*.tmp"))
        task.check()
        return "refused" if status else "fitted"


def rounds(count: int, seed: int, names=TASKS) -> dict[str, Counter]:
    """Runs every interruption `count` times for each task; returns the outcomes."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rng, outcomes = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        model = write_tiny("janus", root / "model")
        for name in names:
            kind, folder = TASKS[name], root / name
            trial = kind(model, folder / "trial")
            began = time.monotonic()
            assert wait(child(trial.work)) == 0 and trial.check() == "new"
            duration = time.monotonic() - began
            largest = max(path.stat().st_size for path in trial.folder.rglob("*") if path.is_file())
            kills, disks, small = Counter(), Counter(), Counter()
            for k in range(count):
                kills[killed(kind(model, folder / f"kill-{k}"), rng, duration)] += 1
                disks[full_disk(kind(model, folder / f"disk-{k}"), rng, largest)] += 1
                small[small_disk_round(kind, model, rng, largest)] += 1
            outcomes |= {f"{name}, killed": kills, f"{name}, file size limit": disks, f"{name}, full disk": small}
        if "convert" in names:
            outcomes["convert, two writers"] = Counter(two_writers(model, root / f"two-{k}") for k in range(count))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interrupted", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tiny("janus")
    for name, outcome in rounds(args.rounds, args.seed).items():
        print(f"{name:30} " + ", ".join(f"{count} {what}" for what, count in sorted(outcome.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
