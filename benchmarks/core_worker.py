"""janus_core in a process of its own, so that it has the threads and the memory that ComfyUI's process has.

The process reads a JSON object per line, {"call": name, "arguments": {...}}, and answers with one: {"result": ...} or
{"error": text}. `Worker` starts and asks it.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from . import ROOT
from .workload import PROMPT, QUESTION, TOKEN_SIZE, Workload, unit_seconds


class Worker:
    """The asking end. Times are in seconds.

    Args:
        device: "cpu", "cuda" or "mps".
        threads: CPU threads of torch.
    """

    def __init__(self, workload: Workload, device: str, threads: int):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.core_worker", json.dumps(asdict(workload)), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, call: str, **arguments):
        """What a method of Pipeline below returns. Raises RuntimeError when it fails or the process has ended."""
        try:
            self.process.stdin.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"janus_core's process ended with status {self.process.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"janus_core: {answer['error']}")
        return answer["result"]

    def load(self, checkpoint: Path, weights: str, vae: Path | None = None) -> float:
        """Loads a checkpoint; see Pipeline.load."""
        return self.ask("load", checkpoint=str(checkpoint), weights=weights, vae=vae and str(vae))

    def run(self, name: str, seed: int) -> dict[str, float]:
        """Seconds of a run's parts."""
        return self.ask("run", name=name, seed=seed)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Pipeline:
    """The process's own end: a janus_core pipeline and the runs of a workload.

    Its dtype is the one that ComfyUI computes in for the same `weights`, so that both do the same arithmetic; a LoRA
    is left out.
    """

    def __init__(self, workload: Workload, device: str):
        import torch

        from janus_core.devices import usable_device

        self.torch, self.workload, self.device = torch, workload, usable_device(device)
        self.pipe = None

    def ready(self) -> bool:
        """Answers once the modules are imported."""
        return True

    def dtype(self) -> str:
        """The dtype that the pipeline computes in, such as "bfloat16"."""
        return str(self.pipe.dtype).removeprefix("torch.")

    def load(self, checkpoint: str, weights: str, vae: str | None) -> float:
        """Loads a checkpoint with weights as `weights`: default, bf16, fp16, fp32, int8, fp8_e4m3fn or int8-lora."""
        from janus_core import loading
        from janus_core.checkpoint import WEIGHT_FORMATS
        from janus_core.cli_options import DTYPES
        from janus_core.operations import compute_dtype
        from janus_core.vae import load_vae

        stored = weights.removesuffix("-lora")
        dtype = compute_dtype(self.device, DTYPES.get(stored, self.torch.bfloat16))
        weight_dtype = stored if stored in WEIGHT_FORMATS else None
        began = time.perf_counter()
        self.pipe = loading.load(checkpoint, self.device, dtype, weight_dtype=weight_dtype)
        seconds = time.perf_counter() - began
        if vae is not None:  # not timed, as Load VAE is not in ComfyUI
            self.pipe.vae = load_vae(vae, self.device, dtype)
        return seconds

    def now(self) -> float:
        if self.device.type != "cpu":
            getattr(self.torch, self.device.type).synchronize()
        return time.perf_counter()

    def run(self, name: str, seed: int) -> dict[str, float]:
        """Seconds of a run's parts, by a name of workload.RUNS."""
        return getattr(self, name)(seed)

    def generate_latents(self, width: int, steps: int, seed: int, callback=None):
        """Tokens or latents of an image of width x width pixels."""
        size = (width, width)
        if self.workload.family == "ar":
            return self.pipe.generate_tokens(PROMPT, size=size, seed=seed, callback=callback)
        return self.pipe.generate_latents(PROMPT, size=size, steps=steps, seed=seed, callback=callback)

    def first(self, seed: int) -> dict[str, float]:
        began = self.now()
        self.generate_latents(TOKEN_SIZE, 1, seed)
        prompt = self.now() - began
        if self.workload.family == "ar":
            decode, shape = self.pipe.decode_pixels, (1, self.pipe.vq.params.codebook_dim)
        else:
            decode, shape = self.pipe.vae.decode, (1, 4)
        latents = self.torch.randn(*shape, self.workload.latent_side, self.workload.latent_side)
        began = self.now()
        with self.torch.inference_mode():
            decode(latents)
        return {"prompt": prompt, "decode": self.now() - began}

    def generate(self, seed: int) -> dict[str, float]:
        marks = []

        def mark(done, total):
            marks.append((time.perf_counter() if marks else self.now(), done))

        self.generate_latents(self.workload.width, self.workload.steps, seed, mark)
        return {"step": unit_seconds(marks, self.now())}

    def describe(self, seed: int) -> dict[str, float]:
        from PIL import Image

        image, marks = Image.new("RGB", (self.workload.native,) * 2, (seed % 256, 128, 128)), []
        began = self.now()
        self.pipe.describe(
            image,
            QUESTION,
            max_new_tokens=self.workload.answer_tokens,
            temperature=0.0,
            callback=lambda done, total: marks.append((self.now(), done)),
        )
        return {"question": marks[0][0] - began, "text": unit_seconds(marks, self.now())}


def main():
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write into the answers
    pipeline = Pipeline(Workload(**json.loads(sys.argv[1])), sys.argv[2])
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = {"result": getattr(pipeline, question["call"])(**question["arguments"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
