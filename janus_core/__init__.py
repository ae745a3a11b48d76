"""DeepSeek's Janus family in plain PyTorch: Janus, Janus-Pro and JanusFlow, from checkpoint to picture.

import janus_core
pipe = janus_core.load("models/janus/Janus-Pro-1B")
pipe("a red circle on a blue background", seed=1)[0].save("circle.png")
pipe.describe(picture, "What colour is it?")
"""

from .errors import CheckpointError, DeviceError, ImageError, JanusError, PromptError, SamplingError
from .pipeline import Cancelled, JanusFlowPipeline, JanusPipeline, load

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "CheckpointError",
    "DeviceError",
    "ImageError",
    "JanusError",
    "JanusFlowPipeline",
    "JanusPipeline",
    "PromptError",
    "SamplingError",
    "load",
]
