"""The nodes, and the adapters that make a janus_core model a native MODEL, CLIP and VAE of ComfyUI."""

from comfy_api.latest import ComfyExtension

from . import error_names, folders, lora_keys
from .caption_node import JanusCaptionFolder
from .describe_node import JanusDescribeImage
from .finetune_nodes import JanusImagePrompt, JanusReflect, JanusThink
from .flow_nodes import JanusFlowSampler, JanusFlowScheduler
from .loader_nodes import JanusFlowLoader, JanusProLoader
from .prompt_node import JanusPromptEncode
from .token_nodes import JanusTokenSampler


class JanusExtension(ComfyExtension):
    async def on_load(self):
        error_names.register()
        folders.register()
        lora_keys.register()

    async def get_node_list(self):
        return [
            JanusProLoader,
            JanusFlowLoader,
            JanusPromptEncode,
            JanusTokenSampler,
            JanusFlowSampler,
            JanusFlowScheduler,
            JanusDescribeImage,
            JanusCaptionFolder,
            JanusImagePrompt,
            JanusThink,
            JanusReflect,
        ]


async def comfy_entrypoint():
    return JanusExtension()
