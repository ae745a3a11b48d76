"""Tiny models of both families and their training batches."""

import torch

from demo.recipe import new_models, scene_data, train_models
from demo.recipe.tokenizer import build_tokenizer
from janus_core.janus import Janus
from janus_core.networks.vq import VQModel, VQParams
from janus_core.prompt import PromptEncoder
from janus_core.training.unified import JanusFlowObjective, JanusObjective

SIZES = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 4,
        "heads": 2,
        "head_dim": 16,
        "max_positions": 512,
    },
    "gen_embed_width": 32,
    "siglip": {"width": 32, "mlp_width": 64, "layers": 1, "heads": 2, "patch_size": 16, "tokens": 64},
    "uvit": {
        "latent_channels": 4,
        "channels": 16,
        "decoder_channels": 16,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "kernel": 2,
        "stride": 2,
        "padding": 0,
        "upsamples": 1,
    },
}
FAMILIES = ("janus", "janusflow")


def tiny(family: str, repa: float = 1.0, codes: int = 16):
    """(objective, batch_at, checkpoint, vq): a batch has 8 images of 8 x 8 tokens to generate."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    vq = None
    if family == Janus.family:
        vq = VQModel(VQParams(codes, codebook_dim=8, z_channels=32, channels=(32,) * 5, res_blocks=1, base_channels=32))
    model = new_models.new_model(family, SIZES, tokenizer.get_vocab_size(), vq)
    checkpoint = new_models.new_checkpoint(model, tokenizer, vq=vq)
    scenes = scene_data.scene_list(0, 8)
    codes = torch.randint(0, 16, (8, 64)) if vq else torch.randn(8, 4, 16, 16)
    prompts = PromptEncoder.of(checkpoint)
    batch_at = scene_data.SceneBatches(prompts, scenes, codes, 64, 64, 16, (6, 8, 2), 0, alignment=vq is None)
    objective = JanusObjective(model, "tasks") if vq else JanusFlowObjective(model, "tasks", repa)
    return objective, batch_at, checkpoint, vq


def tiny_recipe(monkeypatch, family: str, train, **settings):
    """(model, config) for train_models.train_model: a tiny model, 4 scenes, and `train` in place of the training."""
    objective, _, _, vq = tiny(family)
    vae = torch.nn.Linear(1, 1)
    vae.encode = torch.nn.Identity()
    centres = dict.fromkeys(("scenes", "textures"), torch.rand(16, 16 * 16 * 8))
    codes = torch.zeros(4, 64, dtype=torch.long) if vq else torch.zeros(4, 4, 16, 16)
    monkeypatch.setattr(train_models, "train", train)
    monkeypatch.setattr(train_models, "load_vq", lambda path: vq)
    monkeypatch.setattr(train_models, "load_vae", lambda path: vae)
    monkeypatch.setattr(train_models, "read_tensors", lambda path: centres)
    monkeypatch.setattr(train_models, "run_tokenizer", lambda folder: build_tokenizer())
    monkeypatch.setattr(scene_data, "encode_scenes", lambda *args: codes)
    monkeypatch.setattr(new_models, "fix_image_tokens", lambda model, *centres: None)
    monkeypatch.setattr(new_models, "new_model", lambda *args: objective.model)
    config = {"seed": 0, "family": family, "scenes": 4, "autoencoder": "x", "sizes": {}, "repa": 0.0, "time_mean": 0.0,
              "overshoot": 0.0, "unconditional_smoothing": 0.0, "loss_weighting": "tasks"}  # fmt: skip
    return objective.model, {**config, "stages": [{"stage": 3, "rows": 4, "steps": 1}], **settings}
