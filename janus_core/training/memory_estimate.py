"""The memory that a fine-tuning config needs, counted without weights: `python -m janus_core train … --estimate`."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from ..checkpoint import params_of, read_checkpoint
from ..errors import JanusError, TrainingError
from ..janus import Janus, JanusParams
from ..janusflow import VAE_DOWNSCALE, JanusFlow
from ..operations.quantized import operations_over
from ..prompt import PromptEncoder
from .ema import trained_parameters
from .finetune import caption_limit, image_tokens, rows_of
from .folder_data import read_folder
from .memory_tracker import PeakMemory, fused_attention
from .nf4 import to_nf4
from .official import OFFICIAL
from .settings import LoopSettings, loop_settings
from .trained_model import frozen_dtype, make_objective, objective_settings, train_parts

GB = 10**9
DRIVER = GB  # set aside for CUDA, its libraries and fragmentation; an assumption
CHAT_TOKENS = 80  # of the chat template around a question; around a prompt fewer
SMALLEST_8_BIT = 4096  # values; bitsandbytes stores the moments of smaller tensors in 32 bits


@dataclass
class Estimate:
    """Bytes on one GPU by purpose, and what they were counted for."""

    parts: dict[str, int] = field(default_factory=dict)
    title: str = ""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def table(self) -> str:
        """The parts in GB (10^9 bytes), one per line."""
        lines = [self.title, *(f"  {name:42} {size / GB:7.2f} GB" for name, size in self.parts.items())]
        return "\n".join([*lines, f"  {'in all':42} {self.total / GB:7.2f} GB"])

    def check(self, memory: float):
        """Raises TrainingError if the total exceeds `memory` GB."""
        if self.total > memory * GB:
            raise TrainingError(
                f"This config needs about {self.total / GB:.1f} GB, more than {memory:g}: use fewer rows, a lora, a "
                "lora.base of int8 or nf4, gradient_checkpointing, or in the loop adamw8bit, step_in_backward, ema 0."
            )


def estimate_memory(config: dict, gpus: int = 1) -> Estimate:
    """Counts the memory of one training step on a GPU, by running it on tensors that have shapes but no data.

    Args:
        config: a checked config; a checkpoint that does not exist may have a name of `OFFICIAL`.
        gpus: over which FSDP shards what is trained; each trains on the config's rows.

    Raises:
        JanusError: the config or the checkpoint cannot be used.
    """
    params, dtype, base_config, lengths = _dimensions(config)
    settings = loop_settings(config)
    objective_values = objective_settings(config, base_config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = _objective(params, dtype, config, objective_values)
        parts = _static_parts(module, settings)
        sizes = [parameter.nbytes for parameter in trained_parameters(module).values()]
        batch = fake_batch(module.model, rows_of(config), lengths, bool(objective_values["repa"]))
        peak = _peak(module, batch, settings)
    parts["gradients"] = max(sizes) if settings.step_in_backward else sum(sizes)
    parts["activations"] = max(0, peak - parts["gradients"])
    if gpus > 1:
        parts = _sharded(parts, module, gpus)
    parts["set aside for the driver"] = DRIVER
    kind = "LoRA" if config.get("lora") else f"stage {config['stage']}"
    rows = "1 row" if config["rows"] == 1 else f"{config['rows']} rows"
    title = f"{config['checkpoint']}: {kind}, {rows} with texts of up to {max(lengths)} tokens"
    return Estimate(parts, title + (f", on each of {gpus} GPUs" if gpus > 1 else ""))


def _dimensions(config: dict):
    """(params, dtype of the frozen weights, config.json, lengths); lengths: see fake_batch."""
    limit = caption_limit(config)
    lengths = limit, limit
    name = config["checkpoint"]
    official = OFFICIAL.get(Path(name).name.lower())
    if official is not None and not Path(name).expanduser().exists():
        return official, frozen_dtype(torch.bfloat16, config), {}, lengths
    checkpoint = read_checkpoint(name)
    params = params_of(checkpoint)
    try:
        prompts = PromptEncoder.of(checkpoint)
        examples = read_folder(config["images"])
        captions = [min(limit, len(prompts.ids(one.caption))) for one in examples]
        answers = [
            len(prompts.ids(question)) + min(limit, len(prompts.ids(answer)))
            for one in examples
            for question, answer in one.questions
        ]
        lengths = max(captions + answers), max(captions)
    except JanusError:
        pass  # there are no images yet: the longest texts that the config allows
    return params, frozen_dtype(checkpoint.dtype, config), checkpoint.config, lengths


def _objective(params, dtype, config: dict, objective_values: dict):
    """The training objective with a model of fake tensors; called under FakeTensorMode."""
    kind = Janus if isinstance(params, JanusParams) else JanusFlow
    base = (config.get("lora") or {}).get("base")
    with unset_fake_temporarily():  # peft moves weights in ways that fake tensors do not allow
        model = kind(params, operations_over(nn) if base == "int8" else nn, fused_attention, device="meta", dtype=dtype)
        for layer in model.llama.layers.modules() if base == "int8" else ():
            if isinstance(layer, nn.Linear):
                layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
                layer.scale = torch.empty(len(layer.weight), device="meta")
        if base == "nf4":
            to_nf4(model)
        train_parts(model, config)
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = torch.empty(p.shape, dtype=p.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return make_objective(model, objective_values, config.get("loss_weighting")).train()


def _static_parts(module: nn.Module, settings: LoopSettings) -> dict[str, int]:
    """Bytes by purpose of what is in memory for the whole run."""
    trained = trained_parameters(module).values()
    sizes = {
        "frozen weights": sum(p.nbytes for p in module.parameters() if not p.requires_grad)
        + sum(buffer.nbytes for buffer in module.buffers()),
        "trained weights, float32": sum(p.nbytes for p in trained),
    }
    small = sum(p.numel() for p in trained if p.numel() < SMALLEST_8_BIT)
    count = sum(p.numel() for p in trained)
    if settings.optimizer == "adamw8bit":
        sizes["optimizer, 8 bits"] = 2 * (count - small) * 33 // 32 + 8 * small  # a float32 scale per 256 values
    else:
        sizes["optimizer, 32 bits"] = 8 * count
    if settings.ema:
        on_gpu = settings.ema_device == "same"
        sizes["EMA" if on_gpu else "EMA (4 bytes per weight on the CPU)"] = 4 * count if on_gpu else 0
    return sizes


def fake_batch(model, rows: tuple[int, int], lengths: tuple[int, int], alignment: bool) -> dict[str, torch.Tensor]:
    """A batch of the shapes that FolderBatches makes.

    Args:
        rows: of understanding and of generation.
        lengths: tokens of the longest question with its answer, or caption as an answer; and of the longest caption.
        alignment: whether JanusFlow's rows carry pixels.
    """
    siglip, count = model.params.siglip, image_tokens(model)
    batch = {}
    if rows[0]:
        shape = (rows[0], siglip.tokens + 2 + CHAT_TOKENS + lengths[0])
        batch["und_ids"] = torch.zeros(shape, dtype=torch.long)
        batch["und_labels"] = torch.zeros(shape, dtype=torch.long)
        batch["und_is_image"] = torch.zeros(shape, dtype=torch.bool)
        batch["und_segments"] = torch.zeros(shape, dtype=torch.long)
        batch["und_learnt"] = torch.zeros(rows[0] * (lengths[0] + 1), dtype=torch.long)
        batch["und_pixels"] = torch.zeros(rows[0], 3, siglip.image_size, siglip.image_size)
    if rows[1]:
        flow = model.family == JanusFlow.family
        shape = (rows[1], CHAT_TOKENS // 4 + lengths[1] + count + flow)
        batch["gen_ids"] = torch.zeros(shape, dtype=torch.long)
        batch["gen_is_image"] = torch.zeros(shape, dtype=torch.bool)
        batch["gen_visible"] = torch.ones(shape, dtype=torch.bool)
        batch["gen_places"] = torch.arange(shape[1] - count - flow, shape[1]).repeat(rows[1], 1)
        batch["gen_smoothing"] = torch.zeros(rows[1])
        if flow:
            side = siglip.image_size // VAE_DOWNSCALE
            batch["gen_latents"] = torch.zeros(rows[1], model.params.uvit.latent_channels, side, side)
        else:
            batch["gen_tokens"] = torch.zeros(rows[1], count, dtype=torch.long)
        if flow and alignment:
            batch["gen_pixels"] = torch.zeros(rows[1], 3, siglip.image_size, siglip.image_size)
    return batch


def _peak(module: nn.Module, batch: dict, settings: LoopSettings) -> int:
    """Peak bytes of a forward and backward pass, gradients included, weights not."""
    if settings.step_in_backward:
        for parameter in trained_parameters(module).values():
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    mixed = settings.precision == "bf16"
    with PeakMemory() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
            total = module.total(module(batch), batch)
        total.backward()
    return memory.peak


def _sharded(parts: dict[str, int], module: nn.Module, gpus: int) -> dict[str, int]:
    """The parts on each GPU under FSDP, which gathers a block when it is needed, and the rest for the whole step."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in module.model.llama.layers]
    rest = sum(p.numel() for p in module.parameters()) - sum(blocks)
    whole = ("activations",)
    parts = {name: size if name in whole else -(-size // gpus) for name, size in parts.items()}
    return {**parts, "gathered weights and gradients, bf16": 4 * rest + 2 * 4 * max(blocks)}
