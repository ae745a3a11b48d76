"""API-format graphs for the tests, built from the stock nodes and ours."""

import json
from pathlib import Path

API = Path(__file__).resolve().parents[1] / "data" / "api"


class Graph(dict):
    """An API-format prompt; `add` returns the node's id, and [id, k] links to its output k."""

    def add(self, class_type: str, **inputs) -> str:
        node = str(len(self) + 1)
        self[node] = {"class_type": class_type, "inputs": inputs}
        return node


def twin(name: str, **changes) -> dict:
    """The API twin of a template, with inputs changed: {"ClassType.input": value}."""
    prompt = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    for key, value in changes.items():
        class_type, _, field = key.partition(".")
        hits = [n for n in prompt.values() if n["class_type"] == class_type]
        if not hits:
            raise KeyError(f"{name} has no {class_type}")
        for node in hits:
            node["inputs"][field] = value
    return prompt


def outputs_of(prompt: dict, class_type: str) -> list[str]:
    """Ids of the nodes of a class."""
    return [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]


def flow_graph(sampler: str = "KSampler", prompt_node: str = "JanusPromptEncode", *, text: str, seed: int,
               steps: int = 30, cfg: float = 2.0, size: int = 96, batch: int = 1, name: str = "flow-a",
               negative: str = "", **sampler_inputs):  # fmt: skip
    """Loader, prompts, empty latent and a sampler, saved as a latent. Returns (graph, sampler's id)."""
    g = Graph()
    loader = g.add("JanusFlowLoader", model_name=name, weight_dtype="fp32")
    latent = g.add("EmptyLatentImage", width=size, height=size, batch_size=batch)
    positive, negative = prompts(g, loader, prompt_node, text, negative)
    inputs = {"model": [loader, 0], "positive": positive, "negative": negative, "latent_image": [latent, 0],
              "seed": seed, "steps": steps, "cfg": cfg, "denoise": 1.0}  # fmt: skip
    if sampler == "KSampler":
        inputs |= {"sampler_name": "euler", "scheduler": "simple"}
    sampler = g.add(sampler, **{**inputs, **sampler_inputs})
    g.add("SaveLatent", samples=[sampler, 0], filename_prefix="latent")
    return g, sampler


def token_graph(prompt_node: str = "JanusPromptEncode", *, text: str, seed: int = 0, cfg: float = 5.0,
                temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, size: int = 96, batch: int = 1,
                name: str = "ar-a", negative: str = "", **sampler_inputs):  # fmt: skip
    """Loader, prompts, empty latent and the token sampler, saved as latent and image: (graph, sampler's id)."""
    g = Graph()
    loader = g.add("JanusProLoader", model_name=name, weight_dtype="fp32")
    latent = g.add("EmptyLatentImage", width=size, height=size, batch_size=batch)
    positive, negative = prompts(g, loader, prompt_node, text, negative)
    sampler = g.add(
        "JanusTokenSampler",
        **{"model": [loader, 0], "positive": positive, "negative": negative, "latent_image": [latent, 0], "seed": seed,
           "cfg": cfg, "temperature": temperature, "top_k": top_k, "top_p": top_p, **sampler_inputs},
    )  # fmt: skip
    g.add("SaveLatent", samples=[sampler, 0], filename_prefix="tokens")
    decoded = g.add("VAEDecode", samples=[sampler, 0], vae=[loader, 2])
    g.add("SaveImage", images=[decoded, 0], filename_prefix="image")
    return g, sampler


def prompts(g: Graph, loader: str, prompt_node: str, text: str, negative: str):
    """Links of the positive and the negative conditioning, through our node or two stock CLIP Text Encode."""
    clip = [loader, 1]
    if prompt_node == "JanusPromptEncode":
        node = g.add("JanusPromptEncode", clip=clip, text=text, negative_text=negative)
        return [node, 0], [node, 1]
    return tuple([g.add("CLIPTextEncode", clip=clip, text=t), 0] for t in (text, negative))
