"""The base of both MODELs: a ComfyUI BaseModel around a janus_core network, and the config object that it needs."""

import logging

import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import torch

from ..janus_core.checkpoint import (
    WEIGHT_CHOICES,
    Checkpoint,
    build_model,
    metadata_of,
    quantized,
    text_tensors,
)
from ..janus_core.image import check_size
from ..janus_core.networks.cache import KVCache
from .attention import attention
from .operations import COMPUTE_DTYPES, choose_layers


class ModelConfig(comfy.supported_models_base.BASE):
    """The settings of a Janus MODEL; a subclass names its latent format."""

    unet_extra_config = {}
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    supported_inference_dtypes = COMPUTE_DTYPES

    def __init__(self, weight_dtype, compute_dtype):
        super().__init__({"disable_unet_model_creation": True})
        self.set_inference_dtype(weight_dtype, compute_dtype)


class JanusBaseModel(comfy.model_base.BaseModel):
    """A BaseModel whose network is built from a Janus checkpoint.

    Args:
        network: the class of the network, a subclass of Janus or JanusFlow.
        weight_dtype: one of WEIGHT_DTYPES.
    """

    def __init__(self, checkpoint: Checkpoint, config_class, network, weight_dtype, load_device, offload_device):
        if weight_dtype in WEIGHT_CHOICES:
            checkpoint = quantized(checkpoint, weight_dtype, load_device, memory_map=load_device.type == "cpu")
        layers = choose_layers(checkpoint, weight_dtype, load_device, offload_device)
        config = config_class(layers.stored, layers.compute)
        if layers.quant_config:
            config.quant_config = layers.quant_config
        super().__init__(config, comfy.model_base.ModelType.FLOW, device=offload_device)
        self.diffusion_model = build_model(
            checkpoint,
            operations=layers.operations,
            attention=attention,
            dtype=layers.cast,
            device=offload_device,
            network=network,
        )
        self.diffusion_model.dtype = layers.stored
        comfy.model_management.archive_model_dtypes(self.diffusion_model)
        self.texts = metadata_of(checkpoint)

    def state_dict_for_saving(self, unet_state_dict, *args, **kwargs):
        """What Model Save and Checkpoint Save write: all weights, and the config and tokenizer as bytes.

        Our loaders read such a file back. A CLIP or VAE that is saved with the MODEL adds nothing to it.
        """
        return {**super().state_dict_for_saving(unet_state_dict), **self.saved_beside()}

    def get_dynamic_vram__units(self):
        """What ComfyUI's dynamic loader keeps on the GPU first, and what last: it asks under this name.

        Every token or step reads the decoder's blocks and the layers for images; describing alone reads the last ones.
        """
        network = self.diffusion_model
        last = [m for name, m in network.named_modules() if _is_outermost(name, network.unused_in_generation)]
        images = [m for name, m in network.named_children() if name.startswith(("gen_", "vision_gen_"))]
        return [*network.llama.layers, *images], last

    def generation_bytes(self) -> int:
        """Bytes of the weights that each token or step reads, as they are stored."""
        state = self.diffusion_model.state_dict()
        unused = self.diffusion_model.unused_in_generation
        return sum(stored_bytes(tensor) for name, tensor in state.items() if not name.startswith(unused))

    def saved_beside(self) -> dict[str, torch.Tensor]:
        """What a saved file holds beside the network's weights: the config and the tokenizer as bytes."""
        return text_tensors(self.texts)

    def check_size(self, width: int, height: int, patch: int):
        """Logs a warning when an image has another size than the model was trained at.

        Raises:
            ImageError: it is too large, see janus_core.image.check_size.
        """
        check_size(width, height, patch, self.diffusion_model.params.llama.max_positions)
        native = self.diffusion_model.params.siglip.image_size
        if (width, height) != (native, native):
            logging.warning(
                f"Janus was trained at {native}x{native} pixels; images of {width}x{height} may look worse."
            )

    def cache_bytes(self, rows: int, positions: int) -> int:
        """Memory of a key/value cache, in bytes."""
        llama, dtype = self.diffusion_model.params.llama, self.get_dtype_inference()
        return KVCache.bytes(llama, rows, positions, dtype, comfy.model_management.get_torch_device())

    def activation_bytes(self, rows: int, positions: int) -> int:
        """Memory of the decoder's activations in one forward pass with attention's mask and scores, in bytes."""
        llama = self.diffusion_model.params.llama
        per_position = 8 * llama.hidden_size + 3 * llama.intermediate_size + 2 * llama.heads * positions
        return rows * positions * per_position * self.get_dtype_inference().itemsize


def _is_outermost(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a module's parameters have one of the prefixes, and those of the module around it do not."""
    parent = name.rpartition(".")[0]
    return f"{name}.".startswith(prefixes) and not f"{parent}.".startswith(prefixes)


def stored_bytes(tensor) -> int:
    """Bytes of a tensor; of ComfyUI's quantised ones, those of the values that they hold."""
    data = getattr(tensor, "_qdata", tensor)
    return data.numel() * data.element_size()
