"""The ComfyUI side: thin nodes, and the adapters that make janus_core a native MODEL, CLIP and VAE."""

from comfy_api.latest import ComfyExtension

from . import folders
from .describe_node import JanusDescribeImage
from .flow_nodes import JanusFlowSampler, JanusFlowScheduler
from .loader_nodes import JanusFlowLoader, JanusProLoader
from .prompt_node import JanusPromptEncode
from .token_nodes import JanusTokenSampler


class JanusExtension(ComfyExtension):
    async def on_load(self):
        folders.register()

    async def get_node_list(self):
        return [
            JanusProLoader,
            JanusFlowLoader,
            JanusPromptEncode,
            JanusTokenSampler,
            JanusFlowSampler,
            JanusFlowScheduler,
            JanusDescribeImage,
        ]


async def comfy_entrypoint():
    return JanusExtension()
