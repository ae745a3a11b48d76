"""Guidance in an interval of a diffusion run only (arXiv 2404.07724)."""

import comfy.patcher_extension

from ..janus_core.sampling.settings import check_guidance


def with_interval(model, cfg: float, start: float, end: float):
    """The MODEL with guidance only where start <= 1 - sigma < end; the same MODEL for the whole run.

    Raises:
        SamplingError: a value is out of range.
    """
    check_guidance(cfg, (start, end))
    if (start, end) == (0.0, 1.0):
        return model

    def predict_noise(executor, x, timestep, *args, **kwargs):
        guider = executor.class_obj
        cfg = guider.cfg
        if not start <= 1 - timestep.flatten()[0].item() < end:
            guider.cfg = 1.0  # the guider then leaves the unconditional branch out
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = cfg

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "janus_interval", predict_noise)
    return model
