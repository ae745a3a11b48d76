"""Seconds per image through a running ComfyUI and in janus_core: python -m benchmarks.through_comfyui --help.

Start ComfyUI with the pack first. The graph is that of a template: loader, prompt, sampler, VAE Decode, Preview Image.
ComfyUI caches what does not change between runs, so from the second run on it samples, decodes and writes the preview;
janus_core samples and decodes. Both run in turns. ComfyUI's times are those of its history.
"""

import argparse
import json
import random
import statistics
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch

import janus_core
from benchmarks import AR, FLOW, VAE, report
from janus_core.cli import DTYPES

PROMPT = "a red circle on a blue background"


def graph(family: str, model: str, weight_dtype: str, vae: str, size: int, seed: int) -> dict:
    """The API form of a text-to-image graph of either family."""
    ar = family == "ar"
    loader, sampler = ("JanusProLoader", "JanusTokenSampler") if ar else ("JanusFlowLoader", "JanusFlowSampler")
    own = dict(temperature=1.0, top_k=0, top_p=1.0, cfg=5.0) if ar else dict(steps=30, denoise=1.0, cfg=2.0)
    links = {"model": ["loader", 0], "positive": ["prompt", 0], "negative": ["prompt", 1], "latent_image": ["size", 0]}
    nodes = {
        "loader": (loader, {"model_name": model, "weight_dtype": weight_dtype}),
        "size": ("EmptyLatentImage", {"width": size, "height": size, "batch_size": 1}),
        "prompt": ("JanusPromptEncode", {"clip": ["loader", 1], "text": PROMPT, "negative_text": ""}),
        "sampler": (sampler, {**links, **own, "seed": seed}),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["loader", 2] if ar else ["vae", 0]}),
        "show": ("PreviewImage", {"images": ["decode", 0]}),
    }
    if not ar:
        nodes["vae"] = ("VAELoader", {"vae_name": vae})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


class ComfyUI:
    """A running ComfyUI's HTTP API."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def ask(self, path: str, value=None):
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def seconds(self, prompt: dict) -> float:
        """Runs a graph and returns how long ComfyUI says that it took.

        Raises:
            SystemExit: ComfyUI refused the graph, or the run ended in an error.
        """
        try:
            number = self.ask("/prompt", {"prompt": prompt})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"ComfyUI refused the graph: {error.read().decode()}") from None
        while not (run := self.ask(f"/history/{number}").get(number)):
            time.sleep(0.05)
        messages = dict(run["status"]["messages"])
        if "execution_success" not in messages:
            raise SystemExit(f"ComfyUI could not run the graph: {messages.get('execution_error', messages)}")
        return (messages["execution_success"]["timestamp"] - messages["execution_start"]["timestamp"]) / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8188")
    parser.add_argument("--family", choices=["ar", "flow"], default="ar")
    parser.add_argument("--model", help="name in the loader's list, needs --folder; default: the demo")
    parser.add_argument("--vae", default=VAE.name, help="name in Load VAE's list, for JanusFlow")
    parser.add_argument("--folder", type=Path, help="the same checkpoint for janus_core")
    parser.add_argument("--dtype", choices=DTYPES, help="default fp32 on a CPU and bf16 on a GPU")
    parser.add_argument("--vae-file", type=Path, default=VAE, help="the same VAE for janus_core")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels (128)")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if (args.model is None) != (args.folder is None):
        parser.error("--model and --folder name the same checkpoint: give both or neither.")
    ar = args.family == "ar"
    folder = args.folder or (AR if ar else FLOW)
    model = args.model or f"demo/{folder.name}"
    comfyui = ComfyUI(args.url)
    dtype = args.dtype or ("bf16" if torch.cuda.is_available() else "fp32")
    pipe = janus_core.load(folder, dtype=DTYPES[dtype], vae=None if ar else args.vae_file)
    base = random.randrange(2**32)  # seeds that the server has not cached

    def through(seed: int) -> float:
        return comfyui.seconds(graph(args.family, model, dtype, args.vae, args.size, seed))

    def alone(seed: int) -> float:
        began = time.perf_counter()
        pipe(PROMPT, seed=seed, size=(args.size, args.size))
        return time.perf_counter() - began

    runs = [(through(seed), alone(seed)) for seed in range(base, base + args.runs + 1)]
    (first, *later), (first_alone, *later_alone) = zip(*runs)
    host, core = statistics.median(later), statistics.median(later_alone)
    print(report.header(report.run_info(pipe.device)))
    print(f"{model}, {args.size} x {args.size} pixels, {dtype}, medians of {args.runs} runs after a first one:")
    print(f"through ComfyUI {host:.3f} s (the first, with loading, {first:.3f} s)")
    print(f"janus_core      {core:.3f} s (the first {first_alone:.3f} s)")
    print(f"ComfyUI takes {host / core:.2f} times as long")


if __name__ == "__main__":
    main()
