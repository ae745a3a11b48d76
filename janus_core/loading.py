"""Loading a checkpoint as a pipeline."""

from collections.abc import Sequence
from pathlib import Path

import torch

from .checkpoint import Lora, build_model, build_vq, quantized, quantized_layers, read_checkpoint, with_loras
from .devices import usable_device
from .errors import CheckpointError
from .janusflow import JanusFlow
from .operations import choose_operations, compute_dtype
from .pipeline import JanusFlowPipeline, JanusPipeline
from .prompt import PromptEncoder
from .schema import shown
from .vae import load_vae

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load(
    path: str | Path,
    device=None,
    dtype: torch.dtype | None = None,
    vae: str | Path | None = None,
    weight_dtype: str | None = None,
    loras: Lora | Sequence[Lora] = (),
):
    """Loads a checkpoint of either family.

    Args:
        path: a folder in the original or the transformers layout, or a single .safetensors file.
        device: None picks the best one. On a GPU the weights that only understanding uses stay on the CPU until
            `describe` is first called.
        dtype: to compute in; None takes the file's, but on a CPU float32 for float16, and where the processor does not
            multiply bfloat16.
        vae: JanusFlow's VAE, a diffusers folder or sdxl_vae.safetensors; needed for images, not for latents.
        weight_dtype: "int8", "fp8_e4m3fn" or "int4" stores the language model's linear layers in 8 or 4 bits
            (docs/memory.md); None leaves them as in the file. `dtype` is still what the model computes in.
        loras: LoRAs to merge into the weights: files as ComfyUI reads them or peft folders, each alone or as
            (path, strength). Weights are quantised after that.

    Returns:
        JanusPipeline or JanusFlowPipeline.

    Raises:
        CheckpointError: the checkpoint, the VAE or a LoRA cannot be used.
        DeviceError: there is no such device.
    """
    checkpoint = read_checkpoint(path)
    device = usable_device(device)
    dtype = compute_dtype(device, checkpoint.dtype) if dtype is None else dtype
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {shown(dtype)}, it must be one of {', '.join(map(str, DTYPES))}.")
    checkpoint = with_loras(checkpoint, loras)
    if weight_dtype is not None:
        checkpoint = quantized(checkpoint, weight_dtype, memory_map=device.type == "cpu")
    operations = choose_operations(device, dtype, bool(quantized_layers(checkpoint.tensors)))
    model = build_model(checkpoint, operations, dtype=dtype, device=device, unused_device="cpu")
    prompts = PromptEncoder.of(checkpoint)
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype  # image decoders overflow in float16
    if checkpoint.family == JanusFlow.family:
        vae = None if vae is None else load_vae(vae, device, vae_dtype, model.params.uvit.latent_channels)
        return JanusFlowPipeline(model, prompts, device, dtype, vae)
    vq = build_vq(checkpoint, dtype=vae_dtype, device=device)
    if device.type == "cpu":
        vq.to(memory_format=torch.channels_last)  # convolutions are faster there
    return JanusPipeline(model, prompts, device, dtype, vq)
