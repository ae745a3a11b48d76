"""Which stock samplers, schedulers, guiders and model nodes give JanusFlow's right image, by the demo's pixel judge.

tests/compatibility.py writes docs/stock-nodes.md from the cases, which are named after the nodes.
"""

from urllib.parse import quote

import numpy as np
import pytest
from conftest import pixels_of
from graphs import Graph
from PIL import Image

from benchmarks.comfyui_server import Failed
from demo.recipe.judge import judge
from demo.recipe.scenes import Scene, SceneObject

PROMPT = "a red circle on a blue background"
SCENE = Scene((SceneObject("circle", "red", "large", 64, 64),), "blue")
CFG, STEPS = 2.0, 30  # JanusFlow's own settings
SAMPLERS = [
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0",
    "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm",
    "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
]  # fmt: skip
SCHEDULERS = [
    "simple",
    "normal",
    "sgm_uniform",
    "beta",
    "karras",
    "exponential",
    "ddim_uniform",
    "linear_quadratic",
    "kl_optimal",
]
CONDITIONS = {  # of what is wrong with JanusFlow's own settings: the settings with which it is right
    "dpmpp_2m_cfg_pp": {"cfg": 1.0},
    "res_multistep_cfg_pp": {"cfg": 1.0},
    "gradient_estimation_cfg_pp": {"cfg": 1.0},
    "CFGZeroStar": {"cfg": 1.0},
    "EasyCache": {"reuse_threshold": 0.03},
}
MODEL_NODES = {  # that change the image: inputs other than their defaults
    "ModelSamplingSD3": dict(shift=3.0),
    "ModelSamplingAuraFlow": dict(shift=1.73),
    "ModelSamplingFlux": dict(width=128, height=128),
    "RescaleCFG": {},
    "CFGZeroStar": {},
    "CFGNorm": {},
    "CFGOverride": dict(cfg=1.5),
    "APG": {},
    "TCFG": {},
    "Mahiro": {},
    "Epsilon Scaling": {},
    "TemporalScoreRescaling": {},
    "EasyCache": {},
    "LazyCache": dict(reuse_threshold=3.0),
}
UNCHANGED = {  # that leave the image as it is, as they should here
    "DifferentialDiffusion": {},
    "ModelComputeDtype": dict(dtype="fp32"),
    "ModelAttentionBackend": dict(attention="pytorch attention"),
    "SelectModelDevice": dict(device="default"),
}
WITHOUT_EFFECT = {  # that act on layers which JanusFlow does not have
    "PerturbedAttentionGuidance": {},
    "SelfAttentionGuidance": {},
    "SkipLayerGuidanceDiT": {},
    "SkipLayerGuidanceDiTSimple": {},
    "SkipLayerGuidanceSD3": {},
    "NAGuidance": {},
    "HyperTile": {},
    "TomePatchModel": {},
    "FreeU": {},
    "FreeU_V2": {},
    "PatchModelAddDownscale": {},
    "ScaleROPE": {},
    "UNetSelfAttentionMultiply": dict(q=2.0),
}


class FlowImage:
    """A graph from the demo's JanusFlow to a decoded image."""

    def __init__(self, server, **changes):
        self.server, self.graph = server, Graph()
        loader = self.graph.add("JanusFlowLoader", model_name="demo/janusflow-demo", weight_dtype="fp32")
        prompt = self.graph.add("JanusPromptEncode", clip=[loader, 1], text=PROMPT, negative_text="")
        latent = self.graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
        vae = self.graph.add("VAELoader", vae_name="janusflow-demo-vae.safetensors")
        links = {"model": [loader, 0], "positive": [prompt, 0], "negative": [prompt, 1], "latent_image": [latent, 0]}
        settings = dict(seed=1, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="simple", denoise=1.0)
        self.sampler = self.graph.add("KSampler", **{**links, **settings, **changes})
        self.links = self.graph[self.sampler]["inputs"]
        decoded = self.graph.add("VAEDecode", samples=[self.sampler, 0], vae=[vae, 0])
        self.saved = self.graph.add("SaveImage", images=[decoded, 0], filename_prefix="judged")

    def with_model_node(self, name: str, changes: dict) -> "FlowImage":
        """Puts a node between loader and sampler, its inputs by default except for changes."""
        info = self.server.get(f"/object_info/{quote(name)}")[name]["input"].get("required", {})
        inputs = {key: self._default(spec) for key, spec in info.items() if key != "model"}
        self.links["model"] = [self.graph.add(name, model=self.links["model"], **{**inputs, **changes}), 0]
        return self

    @staticmethod
    def _default(spec):
        options = spec[1] if len(spec) > 1 else {}
        choices = spec[0] if isinstance(spec[0], list) else options.get("options", [None])
        return options.get("default", choices[0])

    def pixels(self) -> np.ndarray:
        return pixels_of(self.server, self.server.run(self.graph), self.saved)


def is_right(pixels: np.ndarray) -> bool:
    verdict = judge(Image.fromarray(pixels), SCENE)
    return verdict.background and verdict.relation


@pytest.fixture(scope="module")
def plain(server):
    pixels = FlowImage(server).pixels()
    assert is_right(pixels)
    return pixels.astype(int)


def test_every_sampler_and_scheduler_is_listed(server):
    """Fails when a newer ComfyUI adds a sampler or scheduler."""
    inputs = server.get("/object_info/KSampler")["KSampler"]["input"]["required"]
    assert set(inputs["sampler_name"][0]) <= set(SAMPLERS) and set(inputs["scheduler"][0]) <= set(SCHEDULERS)


def named(record_property, name: str) -> dict:
    """The condition of a name, which the results record for the table; {} without one."""
    condition = CONDITIONS.get(name, {})
    if condition:
        record_property("condition", ", ".join(f"{key} {value:g}" for key, value in condition.items()))
    return condition


def check(server, record_property, name: str, **changes):
    """The image is right; with a condition, only under it."""
    condition = named(record_property, name)
    if condition:
        assert not is_right(FlowImage(server, **changes).pixels()), "it is right without the condition"
    assert is_right(FlowImage(server, **changes, **condition).pixels())


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler(server, record_property, name):
    check(server, record_property, name, sampler_name=name)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(server, record_property, name):
    check(server, record_property, name, scheduler=name)


@pytest.mark.parametrize("name", MODEL_NODES)
def test_model_node(server, plain, record_property, name):
    pixels = FlowImage(server).with_model_node(name, MODEL_NODES[name]).pixels()
    assert np.abs(pixels - plain).max() > 0
    if name in CONDITIONS:
        assert not is_right(pixels), "it is right without the condition"
        condition = named(record_property, name)
        of_sampler = {key: value for key, value in condition.items() if key == "cfg"}
        of_node = {key: value for key, value in condition.items() if key != "cfg"}
        pixels = FlowImage(server, **of_sampler).with_model_node(name, {**MODEL_NODES[name], **of_node}).pixels()
    assert is_right(pixels)


@pytest.mark.parametrize("name", UNCHANGED)
def test_model_node_that_does_not_change_the_image(server, plain, name):
    pixels = FlowImage(server).with_model_node(name, UNCHANGED[name]).pixels()
    assert np.abs(pixels - plain).max() <= 2


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_model_node_without_effect(server, plain, record_property, name):
    """Either the image is the same, or the node refuses the model."""
    try:
        pixels = FlowImage(server).with_model_node(name, WITHOUT_EFFECT[name]).pixels()
    except Failed:
        record_property("effect", "fails")
        return
    assert np.abs(pixels - plain).max() <= 2


@pytest.mark.parametrize("name", ["BasicGuider", "CFGGuider", "DualCFGGuider", "PerpNegGuider"])
def test_guider(server, plain, name):
    image = FlowImage(server)
    graph, links = image.graph, dict(image.links)
    both = {key: links[key] for key in ("positive", "negative")}
    inputs = {
        "BasicGuider": dict(conditioning=links["positive"]),
        "CFGGuider": dict(**both, cfg=CFG),
        "DualCFGGuider": dict(cond1=links["positive"], cond2=links["positive"], negative=links["negative"],
                              cfg_conds=CFG, cfg_cond2_negative=CFG, style="regular"),
        "PerpNegGuider": dict(**both, empty_conditioning=links["negative"], cfg=CFG, neg_scale=1.0),
    }[name]  # fmt: skip
    guider = graph.add(name, model=links["model"], **inputs)
    noise = graph.add("RandomNoise", noise_seed=links["seed"])
    euler = graph.add("KSamplerSelect", sampler_name="euler")
    sigmas = graph.add("BasicScheduler", model=links["model"], scheduler="simple", steps=STEPS, denoise=1.0)
    graph[image.sampler] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": [noise, 0], "guider": [guider, 0], "sampler": [euler, 0], "sigmas": [sigmas, 0],
                   "latent_image": links["latent_image"]},
    }  # fmt: skip
    pixels = image.pixels()
    assert is_right(pixels)
    if name == "CFGGuider":
        assert np.abs(pixels - plain).max() <= 2
