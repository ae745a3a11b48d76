"""Guidance in a part of the run only (arXiv 2404.07724), for both samplers."""

import comfy.patcher_extension
from comfy_api.latest import io

from ..janus_core.sampling.choice import check_guidance


def interval_inputs() -> list:
    """The two inputs that both samplers end with."""
    settings = dict(min=0.0, max=1.0, step=0.01, optional=True, advanced=True)
    return [
        io.Float.Input(
            "cfg_start",
            default=0.0,
            tooltip="Where in the run guidance begins: 0 is the start. Before it the prompt draws alone.",
            **settings,
        ),
        io.Float.Input(
            "cfg_end",
            default=1.0,
            tooltip="Where in the run guidance ends: 1 is the end. After it each step costs half.",
            **settings,
        ),
    ]


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
            guider.cfg = 1.0  # the guider then leaves the negative side out
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = cfg

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "janus_interval", predict_noise)
    return model
