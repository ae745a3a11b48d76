"""The flow demo's training objective: the model also learns to return from where guidance and given images lead it."""

import torch

from janus_core.networks.llama import causal_mask
from janus_core.training import objectives
from janus_core.training.unified import JanusFlowObjective

LATE = 0.5  # from this time on the latents, and no longer the prompt, say what the image shows
AHEAD = 0.1  # the time at which guidance has led farthest, measured at w = 2


class DemoFlowObjective(JanusFlowObjective):
    """As its base, with two kinds of latents that a plain path never has.

    Guidance leads beyond the data: towards x + (w - 1) (x - E[x]) in the first tenth of the path, after which the
    unconditional velocity follows. So half of the rows start from other noise, z_0 + min(t, AHEAD) s (x - m), with m
    another image of the batch and s at random up to `overshoot`; their velocity still leads to x.

    Image to image starts from latents that the prompt need not describe. So rows with gen_late bool [B] have another
    image's prompt and times after LATE, where the latents decide.

    Args:
        overshoot: largest s.
    """

    def __init__(self, model, repa: float, time_mean: float, overshoot: float = 0.0):
        super().__init__(model, repa, time_mean)
        self.overshoot = overshoot

    def path(self, batch):
        """(x, z_0, t) of a batch."""
        x = batch["gen_latents"]
        t = objectives.logit_normal_times(len(x), x.device, self.time_mean)
        late = LATE + (1 - LATE) * torch.rand_like(t)
        t = torch.where(batch["gen_late"], late, t)
        ahead = t.clamp(max=AHEAD) * self.overshoot * torch.rand_like(t) * (torch.rand_like(t) < 0.5)
        return x, torch.randn_like(x) + ahead[:, None, None, None] * (x - x.roll(1, 0)), t

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
        shape = (len(x), 1 + image.shape[1])
        states = states[is_image].unflatten(0, shape)[:, 1:]
        states = model.vision_gen_dec_aligner(model.vision_gen_dec_aligner_norm(states))
        velocity = model.vision_gen_dec_model(states.transpose(1, 2).unflatten(2, skip.shape[-2:]), skip, t_emb)
        losses = {"generation": objectives.flow_loss(velocity, x, z_0)}
        if self.repa:
            with torch.no_grad():
                features = model.vision_und_enc_model(batch["gen_pixels"].to(self.dtype))
            projected = self.repa_head(early[0][is_image].unflatten(0, shape)[:, 1:])
            losses["alignment"] = self.repa * objectives.repa_loss(features, projected)
        return losses
