"""Guidance in a part of the path from noise to image only (arXiv 2404.07724)."""

import comfy.patcher_extension

from ..janus_core.errors import SamplingError
from ..janus_core.sampling.flow import is_guided
from ..janus_core.sampling.settings import check_range


def check_guidance(cfg: float, start: float, end: float):
    """Raises SamplingError, in terms of the nodes' inputs, unless 0 <= cfg <= 100 and 0 <= start <= end <= 1."""
    check_range("cfg", cfg, 0, 100)
    check_range("cfg_start", start, 0, 1)
    check_range("cfg_end", end, 0, 1)
    if start > end:
        raise SamplingError(f"cfg_start is {start}, it must not be greater than cfg_end, which is {end}.")


def with_interval(model, cfg: float, start: float, end: float):
    """A clone of the MODEL with guidance only where start <= 1 - sigma < end; the MODEL itself for 0 to 1.

    Raises:
        SamplingError: a value is out of range.
    """
    check_guidance(cfg, start, end)
    if (start, end) == (0.0, 1.0):
        return model

    def predict_noise(executor, x, timestep, *args, **kwargs):
        guider = executor.class_obj
        cfg = guider.cfg
        if not is_guided(1 - timestep.flatten()[0].item(), (start, end)):
            guider.cfg = 1.0  # the guider then leaves the unconditional branch out
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = cfg

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "janus_interval", predict_noise)
    return model
