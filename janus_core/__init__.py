"""DeepSeek's Janus family in plain PyTorch: Janus, Janus-Pro and JanusFlow, from checkpoint to image.

import janus_core
pipe = janus_core.load("models/janus/Janus-Pro-1B")
pipe("a red circle on a blue background", seed=1)[0].save("circle.png")
pipe.describe(image, "What colour is it?")
"""

import importlib

__version__ = "0.1.0"

# Loaded on first use: torch takes seconds to import, and the command line must be able to say so when interrupted.
_MODULES = {
    "errors": (
        "CheckpointError",
        "DeviceError",
        "DownloadError",
        "ImageError",
        "JanusError",
        "OutputError",
        "PromptError",
        "SamplingError",
        "TrainingError",
    ),
    "finetunes.generation_prompt": ("GenerationPrompt",),
    "loading": ("load",),
    "pipeline": ("JanusFlowPipeline", "JanusPipeline"),
    "progress": ("Cancelled",),
    "sampling.settings": ("FlowSamplerSettings", "TextSamplerSettings", "TokenSamplerSettings"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
