"""Training the LoRA of the toy tasks on the AR demo from its config."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from janus_core.checkpoint import build_model, read_checkpoint, save_lora
from janus_core.checkpoint.files import read_tensors
from janus_core.finetunes.generation_prompt import Embedder
from janus_core.janus import Janus
from janus_core.networks.llama import causal_mask
from janus_core.prompt import PromptEncoder
from janus_core.training import objectives
from janus_core.training.loop import train
from janus_core.training.lora import add_lora
from janus_core.training.settings import LAYERS, LoopSettings
from janus_core.training.unified import IGNORED

from . import new_models
from .codebook import patch_tokens
from .task_data import SEEN, TARGET, TaskBatches


class TaskObjective(nn.Module):
    """Texts and images that alternate in one row; only what the model itself writes is learnt.

    A batch is a dict of task_ids, task_kinds (see task_data), task_labels [B, L], task_visible bool [B, L],
    task_pixels [n, 3, S, S] of the images as the vision tower sees them, and task_tokens [m], the VQ tokens of the
    others, both in the order of their positions. task_smoothing [B] is each row's share of the smoothing.

    Args:
        smoothing: largest label smoothing of image tokens, see unified.JanusObjective.
    """

    def __init__(self, model: Janus, smoothing: float):
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, batch):
        model, kinds = self.model, batch["task_kinds"]
        dtype = model.llama.embed_tokens.weight.dtype
        embeds = model.embed_text(batch["task_ids"], dtype)
        if "task_pixels" in batch:
            seen = model.embed_images(batch["task_pixels"].to(dtype))
            embeds = embeds.masked_scatter((kinds == SEEN)[..., None], seen.to(embeds.dtype))
        if "task_tokens" in batch:
            encoded = model.embed_image_tokens(batch["task_tokens"][None], dtype)
            embeds = embeds.masked_scatter((kinds > SEEN)[..., None], encoded.to(embeds.dtype))
        mask = causal_mask(embeds.shape[1], 0, embeds.dtype, embeds.device, batch["task_visible"])
        states = model.llama(embeds, mask=mask)[:, :-1]
        losses, labels = {}, batch["task_labels"][:, 1:]
        learnt = labels != IGNORED
        if learnt.any():
            losses["text"] = objectives.text_loss(model.text_logits(states[learnt]), labels[learnt])
        target = kinds == TARGET
        if target.any():
            tokens = torch.zeros_like(kinds).masked_scatter(kinds > SEEN, batch["task_tokens"])[target]
            logits = model.image_logits(states[target[:, 1:]])
            smoothing = self.smoothing * batch["task_smoothing"][:, None].expand(kinds.shape)[target]
            losses["generation"] = objectives.image_token_loss(logits[:, None], tokens[:, None], smoothing)
        return losses


def train_tasks(config: dict, folder: Path) -> Path:
    """Trains the LoRA of the toy tasks and writes it as lora.safetensors; see configs/tasks.json.

    `compile` is as in train_model.
    """
    torch.manual_seed(config["seed"])
    checkpoint = read_checkpoint(config["start"])
    model = build_model(checkpoint, attention=new_models.matmul_attention, dtype=torch.float32)
    centres = read_tensors(Path(config["autoencoder"]) / "codebook.safetensors")["scenes"]
    encode = partial(patch_tokens, centres=centres, size=model.params.vq.downscale)
    embedder = Embedder(model, PromptEncoder.of(checkpoint), torch.device("cpu"), torch.float32)
    add_lora(model, config["rank"], config["rank"], LAYERS)
    if config.get("compile"):
        new_models.compile_blocks(model)
    tokens = (model.params.siglip.image_size // model.params.vq.downscale) ** 2
    batch_at = TaskBatches(
        embedder, encode, model.params.siglip.tokens, tokens, config["rows"], config["ratio"], config["seed"]
    )
    settings = LoopSettings(**config["loop"], seed=config["seed"])
    train(TaskObjective(model, config["unconditional_smoothing"]), batch_at, settings, folder / "run")
    return save_lora(model, checkpoint, folder)
