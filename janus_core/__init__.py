"""DeepSeek's Janus family in plain PyTorch: Janus, Janus-Pro and JanusFlow, from checkpoint to image.

import janus_core
pipe = janus_core.load("models/janus/Janus-Pro-1B")
pipe("a red circle on a blue background", seed=1)[0].save("circle.png")
pipe.describe(image, "What colour is it?")
"""

from .errors import CheckpointError, DeviceError, ImageError, JanusError, PromptError, SamplingError
from .finetunes.generation_prompt import GenerationPrompt
from .pipeline import JanusFlowPipeline, JanusPipeline, load
from .progress import Cancelled
from .sampling.settings import FlowSamplerSettings, TextSamplerSettings, TokenSamplerSettings

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "CheckpointError",
    "DeviceError",
    "FlowSamplerSettings",
    "GenerationPrompt",
    "ImageError",
    "JanusError",
    "JanusFlowPipeline",
    "JanusPipeline",
    "PromptError",
    "SamplingError",
    "TextSamplerSettings",
    "TokenSamplerSettings",
    "load",
]
