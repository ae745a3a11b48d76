"""Load Janus-Pro and Load JanusFlow."""

import logging
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
from comfy_api.latest import io

from ..janus_core.checkpoint import Checkpoint, read_checkpoint
from ..janus_core.errors import CheckpointError
from . import folders
from .clip import make_clip
from .conditioning import LOADERS, TITLES
from .flow_model import JanusFlowModel, prepare_flow_sampling
from .operations import WEIGHT_DTYPES, keep_packed_weights_current
from .residency import patcher_class
from .token_model import JanusTokenModel
from .vae import JanusVAE

MODELS = {"janus": JanusTokenModel, "janusflow": JanusFlowModel}


def make_patcher(checkpoint: Checkpoint, weight_dtype: str, disable_dynamic=False):
    """A MODEL of a checkpoint."""
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model = MODELS[checkpoint.family](checkpoint, weight_dtype, load_device, offload_device)
    if checkpoint.family == "janus":
        model.vae = JanusVAE(checkpoint, model.get_dtype_inference())
    patcher_type = comfy.model_patcher.ModelPatcher if disable_dynamic else patcher_class(model, load_device)
    patcher = patcher_type(model, load_device=load_device, offload_device=offload_device)
    if checkpoint.family == "janusflow":
        patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "janus", prepare_flow_sampling)
    keep_packed_weights_current(patcher)
    return patcher


def reload_patcher(path: Path, weight_dtype: str, disable_dynamic=False):
    """Called by ComfyUI for another copy of the MODEL, on another device or with another class of patcher."""
    return make_patcher(read_checkpoint(path), weight_dtype, disable_dynamic)


def load(model_name: str, weight_dtype: str, family: str):
    """(checkpoint, MODEL) of a listed name. Raises CheckpointError when it is of the other family."""
    path = folders.path_of(model_name)
    checkpoint = read_checkpoint(path)
    if checkpoint.family != family:
        raise CheckpointError(
            f"{model_name} is a {TITLES[checkpoint.family]} checkpoint: load it with {LOADERS[checkpoint.family]}."
        )
    patcher = make_patcher(checkpoint, weight_dtype)
    patcher.cached_patcher_init = (reload_patcher, (path, weight_dtype))
    return checkpoint, patcher


def loader_inputs(family: str):
    return [
        io.Combo.Input(
            "model_name",
            options=folders.names(family),
            tooltip="A checkpoint folder or single .safetensors file in models/janus, or one of the pack's demos.",
        ),
        io.Combo.Input(
            "weight_dtype",
            options=WEIGHT_DTYPES,
            default="default",
            tooltip="The dtype of the weights in memory. default: as in the file. int8 and fp8_e4m3fn: the language "
            "model takes half the memory of bf16 and is a little less exact; int8 rounds activations too, and fp8 is "
            "slow, since ComfyUI widens its weights on every call. int4 takes a quarter and is less exact, for NVIDIA "
            "GPUs that int8 does not fit on. ComfyUI chooses the compute dtype on a GPU; a CPU computes in bf16 where "
            "it multiplies that natively, else in fp32.",
            advanced=True,
        ),
    ]


class Loader(io.ComfyNode):
    @classmethod
    def validate_inputs(cls, model_name) -> bool | str:
        """Replaces ComfyUI's check against the list, to say how to get a missing checkpoint.

        A name that comes through a link is None here; execute then raises the same error.
        """
        if model_name is not None:
            try:
                folders.path_of(model_name)
            except CheckpointError as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_name, weight_dtype):
        """Changes when the checkpoint's files do, so that ComfyUI loads it again."""
        return None if model_name is None else folders.fingerprint(model_name)


class JanusProLoader(Loader):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusProLoader",
            display_name=LOADERS["janus"],
            category="Janus/loaders",
            description="Loads Janus, Janus-Pro-1B or Janus-Pro-7B: the model for Janus Token Sampler, the text "
            "encoder, which also describes images, and the VQ image tokenizer. The weights are shared and loaded once.",
            search_aliases=["janus", "janus pro", "deepseek", "autoregressive"],
            inputs=loader_inputs("janus"),
            outputs=[
                io.Model.Output(tooltip="For Janus Token Sampler."),
                io.Clip.Output(tooltip="Encodes prompts, and answers questions in Janus Describe Image."),
                io.Vae.Output(tooltip="The VQ image tokenizer: VAE Decode turns token latents into images."),
            ],
        )

    @classmethod
    def execute(cls, model_name, weight_dtype) -> io.NodeOutput:
        checkpoint, patcher = load(model_name, weight_dtype, "janus")
        return io.NodeOutput(patcher, make_clip(patcher, checkpoint), patcher.model.vae)


class JanusFlowLoader(Loader):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusFlowLoader",
            display_name=LOADERS["janusflow"],
            category="Janus/loaders",
            description="Loads JanusFlow-1.3B: the model for any stock sampler, and the text encoder, which also "
            "describes images. Decode its latents with the SDXL VAE (stock Load VAE).",
            search_aliases=["janus", "janus flow", "deepseek", "rectified flow"],
            inputs=loader_inputs("janusflow"),
            outputs=[
                io.Model.Output(tooltip="For KSampler, SamplerCustom or JanusFlow Sampler."),
                io.Clip.Output(tooltip="Encodes prompts, and answers questions in Janus Describe Image."),
            ],
        )

    @classmethod
    def execute(cls, model_name, weight_dtype) -> io.NodeOutput:
        checkpoint, patcher = load(model_name, weight_dtype, "janusflow")
        advice = None if model_name.startswith("demo/") else folders.missing_vae()
        if advice:
            logging.warning(advice)
        return io.NodeOutput(patcher, make_clip(patcher, checkpoint))
