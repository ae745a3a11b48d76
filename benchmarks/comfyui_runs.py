"""The runs of a workload through ComfyUI, as one graph of which each run executes a part.

ComfyUI caches the outputs of nodes whose inputs have not changed. So a run changes the seeds of its own nodes and
leaves the others' as they were; the loaded model stays cached. Times are those of ComfyUI's events.
"""

from .comfyui_server import Client
from .workload import PROMPT, QUESTION, TOKEN_SIZE, Workload, unit_seconds

VAE = "synthetic-sdxl-vae.safetensors"  # under models/vae


def graph(workload: Workload, model: str, weights: str, lora: str | None, seeds: dict[str, int]) -> dict:
    """The API form of a graph.

    Args:
        model: name in the loader's list.
        weights: the loader's weight_dtype.
        lora: name in Load LoRA's list.
        seeds: by name of a run in workload.RUNS; the graph has only the loader and these runs.
    """
    ar, side = workload.family == "ar", workload.native
    nodes = {
        "loader": ("JanusProLoader" if ar else "JanusFlowLoader", {"model_name": model, "weight_dtype": weights}),
        "loaded": ("PreviewAny", {"source": ["loader", 0]}),
    }
    weights_link = ["loader", 0]
    if lora is not None and seeds:
        inputs = {"model": ["loader", 0], "lora_name": lora, "strength_model": 1.0}
        nodes["lora"], weights_link = ("LoraLoaderModelOnly", inputs), ["lora", 0]

    def sampler(size: str, steps: int, seed: int):
        settings = dict(temperature=1.0, top_k=0, top_p=1.0, cfg=5.0) if ar else dict(steps=steps, denoise=1.0, cfg=2.0)
        links = {"model": weights_link, "positive": ["prompt", 0], "negative": ["prompt", 1], "latent_image": [size, 0]}
        return "JanusTokenSampler" if ar else "JanusFlowSampler", {**links, **settings, "seed": seed}

    def empty(width: int):
        return "EmptyLatentImage", {"width": width, "height": width, "batch_size": 1}

    if "first" in seeds or "generate" in seeds:
        nodes["prompt"] = ("JanusPromptEncode", {"clip": ["loader", 1], "text": PROMPT, "negative_text": ""})
    if "first" in seeds:
        width = 8 * workload.latent_side  # Upscale Latent counts 8 pixels per latent position
        enlarged = {"upscale_method": "nearest-exact", "width": width, "height": width, "crop": "disabled"}
        if not ar:
            nodes["vae"] = ("VAELoader", {"vae_name": VAE})
        nodes |= {
            "one token": empty(TOKEN_SIZE),
            "first": sampler("one token", 1, seeds["first"]),
            "latent": ("LatentUpscale", {"samples": ["first", 0], **enlarged}),
            "decode": ("VAEDecode", {"samples": ["latent", 0], "vae": ["loader", 2] if ar else ["vae", 0]}),
            "show": ("PreviewImage", {"images": ["decode", 0]}),
        }
    if "generate" in seeds:
        nodes |= {
            "size": empty(workload.width),
            "generate": sampler("size", workload.steps, seeds["generate"]),
            "generated": ("PreviewAny", {"source": ["generate", 0]}),
        }
    if "describe" in seeds:
        settings = {"max_new_tokens": workload.answer_tokens, "temperature": 0.0, "top_p": 1.0}
        links = {"clip": ["loader", 1], "image": ["image", 0], "seed": seeds["describe"]}
        nodes |= {
            "image": ("EmptyImage", {"width": side, "height": side, "batch_size": 1, "color": 0x8040FF}),
            "describe": ("JanusDescribeImage", {**links, **settings, "question": QUESTION}),
            "answer": ("PreviewAny", {"source": ["describe", 0]}),
        }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


class ThroughComfyUI:
    """The runs of one checkpoint; the arguments are those of `graph`."""

    def __init__(self, client: Client, workload: Workload, model: str, weights: str, lora: str | None = None):
        self.client, self.settings = client, (workload, model, weights, lora)
        self.seeds = {}

    def load(self) -> float:
        """Seconds of the loader node. Raises Failed when the graph is refused or fails, as `run` does."""
        return self.client.spans(graph(*self.settings, {}))["loader"].seconds

    def run(self, name: str, seed: int) -> dict[str, float]:
        """Seconds of a run's parts, by a name of workload.RUNS; the seed must not have been used before."""
        self.seeds[name] = seed
        spans = self.client.spans(graph(*self.settings, self.seeds))
        span = spans[name]
        if name == "first":
            return {"prompt": span.seconds, "decode": spans["decode"].seconds}
        unit = unit_seconds(span.progress, span.end)
        if name == "generate":
            return {"step": unit}
        return {"question": span.progress[0][0] - span.start, "text": unit}
