"""Seconds per picture through a running ComfyUI, beside janus_core: python -m benchmarks.through_comfyui --help.

Start ComfyUI with the pack first. The graph is a template's: loader, prompt, sampler, VAE Decode, Preview Image.
ComfyUI keeps what does not change between runs, so after the first one a run is sampling, decoding and writing the
preview; janus_core's run is sampling and decoding. Both take turns. Times are ComfyUI's own, from its history.
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
from benchmarks.demo_quality import AR, FLOW, VAE
from janus_core.cli import DTYPES

PROMPT = "a red circle on a blue background"


def graph(family: str, model: str, weight_dtype: str, vae: str, side: int, seed: int) -> dict:
    """The API form of a text-to-image graph of either family."""
    ar = family == "ar"
    loader, sampler = ("JanusProLoader", "JanusTokenSampler") if ar else ("JanusFlowLoader", "JanusFlowSampler")
    own = dict(temperature=1.0, top_k=0, top_p=1.0, cfg=5.0) if ar else dict(steps=30, denoise=1.0, cfg=2.0)
    links = {"model": ["loader", 0], "positive": ["prompt", 0], "negative": ["prompt", 1], "latent_image": ["size", 0]}
    nodes = {
        "loader": (loader, {"model_name": model, "weight_dtype": weight_dtype}),
        "size": ("EmptyLatentImage", {"width": side, "height": side, "batch_size": 1}),
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
    parser.add_argument("--model", help="as the loader lists it, with --folder; the demo by default")
    parser.add_argument("--vae", default=VAE.name, help="as Load VAE lists it, for JanusFlow")
    parser.add_argument("--folder", type=Path, help="the same checkpoint for janus_core")
    parser.add_argument("--dtype", choices=DTYPES, help="of both; fp32 on a CPU and bf16 on a GPU by default")
    parser.add_argument("--vae-file", type=Path, default=VAE)
    parser.add_argument("--side", type=int, default=128, help="pixels (128)")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if (args.model is None) != (args.folder is None):
        parser.error("--model and --folder go together: they are one checkpoint.")
    ar = args.family == "ar"
    folder = args.folder or (AR if ar else FLOW)
    model = args.model or f"demo/{folder.name}"
    comfyui = ComfyUI(args.url)
    dtype = args.dtype or ("bf16" if torch.cuda.is_available() else "fp32")
    pipe = janus_core.load(folder, dtype=DTYPES[dtype], vae=None if ar else args.vae_file)
    base = random.randrange(2**32)  # a server may still hold the pictures of another time

    def through(seed: int) -> float:
        return comfyui.seconds(graph(args.family, model, dtype, args.vae, args.side, seed))

    def alone(seed: int) -> float:
        began = time.perf_counter()
        pipe(PROMPT, seed=seed, size=(args.side, args.side))
        return time.perf_counter() - began

    runs = [(through(seed), alone(seed)) for seed in range(base, base + args.runs + 1)]
    (first, *later), (first_alone, *later_alone) = zip(*runs)
    host, core = statistics.median(later), statistics.median(later_alone)
    device = torch.cuda.get_device_name() if pipe.device.type == "cuda" else "CPU"
    print(f"{model}, {args.side} pixels wide, in {dtype} on {device}, medians of {args.runs} runs after a first one:")
    print(f"through ComfyUI {host:.3f} s (the first, with loading, {first:.3f} s)")
    print(f"janus_core      {core:.3f} s (the first {first_alone:.3f} s)")
    print(f"ComfyUI takes {host / core:.2f} times as long")


if __name__ == "__main__":
    main()
