"""The training step of both models: images to generate and questions to answer, one forward pass for each kind.

Rows are padded at the end: attention is causal, so padding changes nothing before it. Heads and losses are computed at
the positions that are learnt only; batches list them, so that no shape depends on a tensor's values.
"""

import torch
from torch import nn

from ..attention import additive_mask
from ..janus import Janus
from ..janusflow import JanusFlow
from ..networks.llama import causal_mask
from . import objectives

IGNORED = -100
PADDING = -1


class Objective(nn.Module):
    """The losses of both families: answers to questions, with and without an image, and generation.

    forward takes a batch, a dict of tensors, and returns a dict of losses. Each kind of rows is optional:
        und_ids [B, L], und_is_image bool [B, L], und_labels [B, L], und_pixels [B, 3, S, S]: questions with answers;
        und_learnt [n]: the positions, counted through all rows, whose next token is learnt;
        und_segments [B, L]: 0 for what a row's questions share, k for its k-th question, PADDING at the end;
        text_ids [B, L], text_labels [B, L], text_learnt [n]: text alone;
        gen_ids [B, L], gen_is_image bool [B, L] (the image's positions), gen_places [B, n] (their indices in the row),
        and the family's own.

    Args:
        loss_weighting: how `total` adds up the losses. "examples" weights each kind's mean by its share of the batch's
            rows. This is what the paper's data ratios (JanusFlow, table 1) mean: every example counts the same, and a
            ratio of 80 % generation gives generation 80 % of the weight. "tasks" adds the means: every kind counts the
            same, and a ratio changes only how noisy the estimate of each mean is.
    """

    def __init__(self, model, loss_weighting: str):
        super().__init__()
        self.model, self.loss_weighting = model, loss_weighting

    @property
    def dtype(self) -> torch.dtype:
        return self.model.llama.embed_tokens.weight.dtype

    def forward(self, batch):
        losses = {}
        if "und_ids" in batch:
            losses["understanding"] = self.understanding(batch)
        if "text_ids" in batch:
            embeds = self.model.embed_text(batch["text_ids"], self.dtype)
            losses["text"] = self.answer_loss(embeds, batch["text_labels"], batch["text_learnt"])
        if "gen_ids" in batch:
            losses |= self.generation(batch)
        return losses

    def understanding(self, batch):
        images = self.model.embed_images(batch["und_pixels"].to(self.dtype))
        embeds = self.with_images(batch["und_ids"], batch["und_is_image"], images)
        segments = segmented(batch["und_segments"], embeds.dtype)
        return self.answer_loss(embeds, batch["und_labels"], batch["und_learnt"], *segments)

    def answer_loss(self, embeds, labels, learnt, positions=None, mask=None):
        """Text loss of rows; labels [B, L] are each position's own token. `learnt`: see Objective."""
        states = self.model.llama(embeds, positions=positions, mask=mask)
        return objectives.text_loss(self.model.text_logits(states.flatten(0, 1)[learnt]), labels.flatten()[learnt + 1])

    def total(self, losses, batch):
        """The loss to minimise (see `loss_weighting`)."""
        if self.loss_weighting == "tasks":
            return sum(losses.values())
        kinds = {"understanding": "und_ids", "text": "text_ids", "generation": "gen_ids", "alignment": "gen_ids"}
        rows = sum(len(batch[ids]) for ids in set(kinds.values()) if ids in batch)
        return sum(loss * (len(batch[kinds[name]]) / rows) for name, loss in losses.items())

    def with_images(self, ids, is_image, images):
        """Embeddings of ids [B, L] with images [B, n, hidden] at the n positions per row where `is_image` is True."""
        embeds = self.model.embed_text(ids, self.dtype)
        return embeds.masked_scatter(is_image[..., None], images.to(embeds.dtype))


def at_places(states, places):
    """The states [B, n, hidden] at `places` [B, n] of states [B, L, hidden]."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def segmented(segments, dtype):
    """Positions [B, L] and additive mask [B, 1, L, L] with which each segment attends to segment 0 and itself only.

    Args:
        segments: [B, L], see Objective.
    """
    L = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    allowed = (same | (segments == 0)[:, None, :]) & torch.ones(L, L, dtype=torch.bool, device=segments.device).tril()
    return allowed.sum(-1) - 1, additive_mask(allowed[:, None], dtype)


class JanusObjective(Objective):
    """Janus: gen_tokens [B, N] are the image's VQ tokens; gen_is_image is True at N positions; gen_smoothing [B]
    is each row's share of the smoothing, 1 for rows without a prompt.

    Args:
        smoothing: largest label smoothing. Guidance weights a token by p_c^w / p_u^(w - 1). Where both
            are tiny, noise in p_u decides; smoothing bounds p_u from below, so that guidance selects no stray tokens.
    """

    def __init__(self, model: Janus, loss_weighting: str, smoothing: float = 0.0):
        super().__init__(model, loss_weighting)
        self.smoothing = smoothing

    def generation(self, batch):
        is_image, tokens = batch["gen_is_image"], batch["gen_tokens"]
        images = self.model.embed_image_tokens(tokens, self.dtype)
        states = self.model.llama(self.with_images(batch["gen_ids"], is_image, images))
        states = at_places(states, batch["gen_places"] - 1)
        smoothing = self.smoothing * batch["gen_smoothing"]
        return {"generation": objectives.image_token_loss(self.model.image_logits(states), tokens, smoothing)}


class JanusFlowObjective(Objective):
    """JanusFlow: gen_latents [B, 4, H, W] are scaled latents; gen_is_image is True at 1 + N positions, the time
    embedding first; gen_visible bool [B, L] is False on the hidden pads of unconditional rows; gen_pixels
    [B, 3, S, S], for REPA, are the target images as the understanding encoder reads them.

    Args:
        repa: weight of the alignment loss; 0 omits it and its head.
        time_mean: of the logit-normal times.
    """

    def __init__(self, model: JanusFlow, loss_weighting: str, repa: float = 1.0, time_mean: float = 0.0):
        super().__init__(model, loss_weighting)
        self.repa, self.time_mean = repa, time_mean
        llama = model.params.llama
        self.repa_block = max(1, round(llama.layers / 4))
        if repa:
            hidden, width = llama.hidden_size, model.params.siglip.width
            layers = (nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
            self.repa_head = nn.Sequential(*layers, nn.Linear(hidden, width))

    def path(self, batch):
        """The ends and the times of the paths to learn: latents, noise [B, 4, H, W]; times [B]."""
        x = batch["gen_latents"]
        return x, torch.randn_like(x), objectives.logit_normal_times(len(x), x.device, self.time_mean)

    def generation(self, batch):
        model, is_image = self.model, batch["gen_is_image"]
        x, z_0, t = self.path(batch)
        z_t = objectives.flow_path(x, z_0, t).to(self.dtype)
        skip, t_emb = model.vision_gen_enc_model(z_t, 1000 * t)
        image = model.vision_gen_enc_aligner(skip.flatten(2).transpose(1, 2))
        embeds = self.with_images(batch["gen_ids"], is_image, torch.cat((t_emb[:, None], image), dim=1))
        mask = causal_mask(embeds.shape[1], 0, embeds.dtype, embeds.device, batch["gen_visible"])
        early = []
        handle = model.llama.layers[self.repa_block - 1].register_forward_hook(lambda m, args, out: early.append(out))
        states = model.llama(embeds, mask=mask)
        handle.remove()
        places = batch["gen_places"][:, 1:]  # without the time embedding
        states = at_places(states, places)
        states = model.vision_gen_dec_aligner(model.vision_gen_dec_aligner_norm(states))
        velocity = model.vision_gen_dec_model(states.transpose(1, 2).unflatten(2, skip.shape[-2:]), skip, t_emb)
        losses = {"generation": objectives.flow_loss(velocity, x, z_0)}
        if self.repa:
            with torch.no_grad():
                features = model.vision_und_enc_model(batch["gen_pixels"].to(self.dtype))
            states = at_places(early[0], places).to(self.repa_head[0].weight.dtype)
            projected = self.repa_head(states)
            losses["alignment"] = objectives.repa_loss(features, projected)
        return losses

    def total(self, losses, batch):
        if "alignment" in losses:
            losses = {**losses, "alignment": self.repa * losses["alignment"]}
        return super().total(losses, batch)
