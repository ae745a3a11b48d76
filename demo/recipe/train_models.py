"""Training the demo models from their configs."""

from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tokenizers import Tokenizer

from janus_core.checkpoint import read_checkpoint
from janus_core.checkpoint.files import read_tensors
from janus_core.checkpoint.write import save_model
from janus_core.janus import Janus
from janus_core.janusflow import JanusFlow
from janus_core.prompt import PromptEncoder
from janus_core.training import stages
from janus_core.training.loop import train
from janus_core.training.settings import LoopSettings
from janus_core.training.trained_model import OBJECTIVE, TRAINED_WITH
from janus_core.training.unified import JanusObjective
from janus_core.training.validation import image_grid, pipeline_of
from janus_core.vae import load_vae

from . import captions, new_models, scene_data
from .codebook import patch_tokens
from .flow_objective import DemoFlowObjective
from .tokenizer import build_tokenizer
from .train_autoencoders import load_vq

PER_STAGE = ("time_mean", "overshoot")  # settings of the flow's objective that a stage can replace


def train_model(config: dict, folder: Path) -> Path:
    """Trains a demo model and writes it as a folder in the original layout; see configs/janus_pro.json.

    Without an `autoencoder` a JanusFlow model learns from text alone; of it, other models take the language model.
    `shared` is the share of the scenes with two objects in which these have something in common (see
    scene_data.mixed_scene), by default 0; with `compile` the language model's blocks are compiled, which needs a C++
    compiler; `overshoot` and `late` are the flow's (see flow_objective.py). Each of the config's `stages` has a stage
    number, the rows and the data ratio of a batch, whether text alone describes held-out combinations
    (`text_held_out`), the share of prompts that say everything (`complete`), other shares of prompts and images
    (`plain`, `pairs`, `bare`, see scene_data.SceneBatches) and loop settings; it can replace the config's `time_mean`,
    `overshoot` and `late`.
    """
    seed, family = config["seed"], config["family"]
    torch.manual_seed(seed)
    scenes = scene_data.scene_list(seed, config["scenes"], config.get("shared", 0.0))
    vq = vae = codes = encode = None
    if family == Janus.family:
        vq = load_vq(Path(config["autoencoder"]) / "vq.safetensors")
        codebook = read_tensors(Path(config["autoencoder"]) / "codebook.safetensors")
        encode = partial(patch_tokens, centres=codebook["scenes"], size=vq.params.downscale)
    elif "autoencoder" in config:
        vae = load_vae(config["autoencoder"])
        encode = torch.autocast("cpu", torch.bfloat16)(vae.encode)
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator does
    with processes.main_process_first():  # the others read its files
        tokenizer = run_tokenizer(folder)
        if encode:
            codes = scene_data.encode_scenes(scenes, encode, folder / "codes.safetensors")
    model = new_models.new_model(family, config["sizes"], tokenizer.get_vocab_size(), vq)
    if config.get("start"):
        new_models.start_from(model, read_checkpoint(config["start"]))
    if vq is not None:
        new_models.fix_image_tokens(model, codebook["scenes"], codebook["textures"])
    if config.get("encoder"):
        new_models.tower_of(model).load_state_dict(read_tensors(Path(config["encoder"])))
    checkpoint = new_models.new_checkpoint(model, tokenizer, folder, vq)
    if config.get("compile"):
        new_models.compile_blocks(model)
    checkpoint.config[TRAINED_WITH] = {key: config[key] for key in OBJECTIVE if key in config}  # for fine-tuning
    prompts = PromptEncoder.of(checkpoint)
    if family == JanusFlow.family:
        objective = DemoFlowObjective(
            model, config["loss_weighting"], config["repa"], config["time_mean"], config["overshoot"]
        )
        image_tokens = model.image_tokens(*codes.shape[-2:]) if encode else 0
    else:
        objective = JanusObjective(model, config["loss_weighting"], config["unconditional_smoothing"])
        image_tokens = codes.shape[1]

    @torch.compiler.set_stance("force_eager")
    def sample(path):
        pipe = pipeline_of(model, prompts, vae if vq is None else vq)  # where the model is by now
        images = [pipe(prompt, seed=k)[0] for k, prompt in enumerate(captions.SAMPLE_PROMPTS)]
        image_grid(images, 4).save(path, format="PNG")

    for number, stage in enumerate(config["stages"]):
        stage = dict(stage)
        for setting in PER_STAGE:
            if setting in config:
                setattr(objective, setting, stage.pop(setting, config[setting]))
        stages.freeze(model, stage["stage"])
        if vq is not None:
            for fixed in new_models.image_token_weights(model):
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
            alignment=bool(config.get("repa")),
            text_held_out=stage.pop("text_held_out", False),
            late=stage.pop("late", config.get("late", 0.0)),
            complete=stage.pop("complete", captions.COMPLETE),
            plain=stage.pop("plain", 0.0),
            pairs=stage.pop("pairs", 0.0),
            bare=stage.pop("bare", 0),
        )
        settings = LoopSettings(**{**config.get("loop", {}), **stage}, seed=seed + number)
        train(objective, batch_at, settings, folder / f"stage_{number}", sample=sample if encode else None)
    if processes.is_main_process:
        save_model(model, checkpoint, vq, folder / "checkpoint")
    return folder / "checkpoint"


def run_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a run, trained when it begins; a resumed run reads its own."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        path.write_text(build_tokenizer().to_str(), encoding="utf-8")
    return Tokenizer.from_file(str(path))
