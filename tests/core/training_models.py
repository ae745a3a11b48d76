"""Tiny models of both families and their training batches."""

import torch

from demo.recipe import new_models, scene_data
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
