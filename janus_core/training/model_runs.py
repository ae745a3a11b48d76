"""Training the demo models from their configs."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tokenizers import Tokenizer
from torch import nn

from ..checkpoint import Checkpoint, read_checkpoint
from ..checkpoint.files import read_tensors
from ..janusflow import JanusFlow
from ..pipeline import JanusFlowPipeline, JanusPipeline
from ..prompt import PromptEncoder
from ..vae import load_vae
from . import autoencoder_runs, build, scene_data, stages
from .autoencoders import patch_tokens
from .loop import LoopSettings, train
from .tokenizer import build_tokenizer
from .unified import JanusFlowObjective, JanusObjective

SAMPLE_PROMPTS = (
    "a red circle on a blue background",
    "a large green triangle on a white background",
    "a small yellow cross on a black background",
    "a purple square on an orange background",
    "a white circle left of a black square on a red background",
    "a green cross above a yellow circle on a purple background",
    "a small blue triangle right of a large orange cross on a white background",
    "a red triangle on a green background",
)


def train_model(config: dict, folder: Path) -> Path:
    """Trains a demo model and writes it as a folder in the published layout; see configs/janus_pro_demo.json.

    `alike` is the share of the scenes with two things that have them alike (scenes.random_scene), 0 by default. Each of
    the config's `stages` has a stage number, the rows and the data ratio of a batch, whether text alone tells of
    held-out combinations (`tell_all`), and loop settings. What is written is the mean of the weights at the end of the
    last `average` stages (averaging over cycles of the learning rate, arXiv 1803.05407), 1 by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seed, family = config["seed"], config["family"]
    torch.manual_seed(seed)
    scenes = scene_data.scene_list(seed, config["scenes"], config.get("alike", 0.0))
    vq = vae = None
    if family == JanusFlow.family:
        vae = load_vae(config["autoencoder"])
        encode = torch.autocast("cpu", torch.bfloat16)(vae.encode)
    else:
        vq = autoencoder_runs.load_vq(Path(config["autoencoder"]) / "vq.safetensors")
        centres = read_tensors(Path(config["autoencoder"]) / "codebook.safetensors")["centres"]
        encode = partial(patch_tokens, centres=centres, side=vq.params.downscale)
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator reads it
    with processes.main_process_first():  # the others find the files
        tokenizer = run_tokenizer(folder)
        codes = scene_data.encode_scenes(scenes, encode, folder / "codes.safetensors")
    model = build.new_model(family, config["sizes"], tokenizer.get_vocab_size(), vq)
    if config.get("start"):
        build.start_from(model, read_checkpoint(config["start"]))
    if vq is not None:
        build.fix_image_tokens(model, centres)
    if config.get("encoder"):
        build.tower_of(model).load_state_dict(read_tensors(Path(config["encoder"])))
    checkpoint = build.new_checkpoint(model, tokenizer, folder, vq)
    prompts = PromptEncoder.of(checkpoint)
    if family == JanusFlow.family:
        objective = JanusFlowObjective(model, config["repa"], config["time_mean"])
        image_tokens = model.image_tokens(*codes.shape[-2:])
        pipe = JanusFlowPipeline(model, prompts, torch.device("cpu"), torch.float32, vae)
    else:
        objective = JanusObjective(model, config["unconditional_smoothing"])
        image_tokens = codes.shape[1]
        pipe = JanusPipeline(model, prompts, torch.device("cpu"), torch.float32, vq)

    def sample(path):
        pictures = [pipe(prompt, seed=k)[0] for k, prompt in enumerate(SAMPLE_PROMPTS)]
        autoencoder_runs.picture_grid(pictures, 4).save(path)

    ends = []
    for number, stage in enumerate(config["stages"]):
        stage = dict(stage)
        stages.freeze(model, stage["stage"])
        if vq is not None:
            for fixed in build.image_token_weights(model):
                fixed.requires_grad_(False)
        ratio = stage.pop("ratio", stages.RATIOS[stage.pop("stage")])
        batch_at = scene_data.SceneBatches(
            prompts,
            scenes,
            codes,
            image_tokens,
            model.params.siglip.tokens,
            stage.pop("rows"),
            ratio,
            seed + number,
            read_targets=bool(config.get("repa")),
            tell_all=stage.pop("tell_all", False),
        )
        settings = LoopSettings(**{**config.get("loop", {}), **stage}, seed=seed + number)
        train(objective, batch_at, settings, folder / f"stage_{number}", sample=sample)
        ends.append({name: weight.clone() for name, weight in model.state_dict().items()})
    model.load_state_dict(mean_weights(ends[-config.get("average", 1) :]))
    if processes.is_main_process:
        write(model, checkpoint, vq, folder / "checkpoint")
    return folder / "checkpoint"


def mean_weights(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of several states of one model."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def run_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a run, made when it begins: one that is resumed keeps its own, whatever the captions are now."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        path.write_text(build_tokenizer().to_str(), encoding="utf-8")
    return Tokenizer.from_file(str(path))


def write(model: nn.Module, like: Checkpoint, vq, folder: Path):
    """Writes a trained model as a published folder, with the tokenizer and configs of `like`."""
    tensors = dict(model.state_dict())
    if vq is not None:
        tensors |= {build.VQ_PREFIX + name: weight for name, weight in vq.state_dict().items()}
    build.save_folder(replace(like, path=folder, tensors=tensors), folder)
