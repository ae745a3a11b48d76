"""The flow demo's training objective: the model also learns to return from where guidance and given images lead it."""

import torch

from janus_core.training import objectives
from janus_core.training.unified import JanusFlowObjective

LATE = 0.65  # from this time on the latents, and no longer the prompt, say what the image shows
AHEAD = 0.2  # the time at which guidance has led farthest; 0.1, measured at w = 2, if latents are as wide as the noise


class DemoFlowObjective(JanusFlowObjective):
    """As its base, with two kinds of latents that a plain path never has.

    Guidance leads beyond the data: towards x + (w - 1) (x - E[x]) in the first fifth of the path, after which the
    unconditional velocity follows. So half of the rows start from other noise, z_0 + min(t, AHEAD) s (x - m), with m
    another image of the batch and s at random up to `overshoot`; their velocity still leads to x.

    Image to image starts from latents that the prompt need not describe. So rows with gen_late bool [B] have another
    image's prompt and times after LATE, where the latents decide.

    Args:
        overshoot: largest s.
    """

    def __init__(self, model, loss_weighting: str, repa: float, time_mean: float, overshoot: float = 0.0):
        super().__init__(model, loss_weighting, repa, time_mean)
        self.overshoot = overshoot

    def path(self, batch):
        x = batch["gen_latents"]
        t = objectives.logit_normal_times(len(x), x.device, self.time_mean)
        late = LATE + (1 - LATE) * torch.rand_like(t)
        t = torch.where(batch["gen_late"], late, t)
        ahead = t.clamp(max=AHEAD) * self.overshoot * torch.rand_like(t) * (torch.rand_like(t) < 0.5)
        return x, torch.randn_like(x) + ahead[:, None, None, None] * (x - x.roll(1, 0)), t
