"""Dimensions of the official checkpoints, to estimate the memory of training them before they are downloaded."""

from ..janus import JanusParams
from ..janusflow import JanusFlowParams
from ..networks.llama import LlamaParams
from ..networks.siglip import SiglipParams
from ..networks.uvit import UViTParams
from ..networks.vq import VQParams

_SIGLIP = SiglipParams(width=1024, mlp_width=4096, layers=24, heads=16, patch_size=16, tokens=576)
_VQ = VQParams(codebook_size=16384, codebook_dim=8, z_channels=256, channels=(128, 128, 256, 256, 512))
_1B = LlamaParams(102400, 2048, 5632, layers=24, heads=16, kv_heads=16, head_dim=128)
_7B = LlamaParams(102400, 4096, 11008, layers=30, heads=32, kv_heads=32, head_dim=128)

OFFICIAL = {  # by the names of `python -m janus_core download`
    "janus-pro-1b": JanusParams(_1B, _SIGLIP, _VQ, gen_head_width=2048),
    "janus-pro-7b": JanusParams(_7B, _SIGLIP, _VQ, gen_head_width=4096),
    "janus-1.3b": JanusParams(_1B, _SIGLIP, _VQ, gen_head_width=2048),
    "janusflow-1.3b": JanusFlowParams(_1B, _SIGLIP, UViTParams(4, 768, 768, 2048, 2, 2, 2, 2, 0, 1)),
}
