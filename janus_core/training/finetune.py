"""Fine-tuning any checkpoint on a folder of captioned images: all weights of a stage, or a LoRA."""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ..checkpoint import VQ_PREFIX, build_vq, read_checkpoint, save_folder, save_lora
from ..checkpoint.read import Checkpoint
from ..errors import CheckpointError, ImageError, TrainingError
from ..files import user_path
from ..janusflow import VAE_DOWNSCALE, JanusFlow
from ..prompt import PromptEncoder
from ..vae import load_vae
from . import batches, sharding, stages
from .curves import save_curve
from .encoded import EncodedImages, fingerprint
from .folder_batches import FolderBatches, parts_read
from .folder_data import Example, cut_texts, read_folder
from .identity import run_identity
from .loop import check_distribution, train
from .settings import loop_settings, setting
from .trained_model import TRAINED_WITH, build_trained_model, make_objective, objective_settings
from .validation import Validation, move_autoencoder

CAPTION_TOKENS = 256


def finetune(config: dict, folder: Path) -> Path:
    """Fine-tunes as configs/finetune.json says.

    Returns:
        The folder of the fine-tuned checkpoint; with `lora` the file of the LoRA. The folder `steps` has the LoRA of
        each earlier save.

    Raises:
        CheckpointError: the checkpoint cannot be read or trained, or the VAE of a JanusFlow is not named.
        ImageError: an image or a caption is missing or cannot be read.
        TrainingError: a loss is not finite, the folder's state is of another run, or a library is missing.
        OutputError: the result cannot be written.
    """
    processes, settings = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")), loop_settings(config)
    check_processes(config, processes.num_processes, parse_flag_from_env("ACCELERATE_USE_FSDP"))
    torch.manual_seed(config["seed"])
    checkpoint = read_checkpoint(config["checkpoint"])
    model = build_trained_model(checkpoint, config)
    prompts = PromptEncoder.of(checkpoint)
    objective_values = objective_settings(config, checkpoint.config, checkpoint.path)
    alignment = model.family == JanusFlow.family and objective_values["repa"] > 0

    autoencoder, encode, weights = _autoencoder(model, checkpoint, config, processes.device)
    examples, prior = _read_examples(config, prompts)
    cache, size = user_path(config.get("cache") or folder / "cache", TrainingError), model.params.siglip.image_size
    images = EncodedImages(cache, size, encode, fingerprint(weights), parts_read(rows_of(config), alignment))
    paths = [one.path for one in (*examples, *prior)]
    images.prepare(paths, processes.process_index, processes.num_processes)
    processes.wait_for_everyone()
    move_autoencoder(autoencoder, "cpu")
    batch_at = FolderBatches(
        prompts,
        examples,
        images,
        image_tokens(model),
        model.params.siglip.tokens,
        rows_of(config),
        config["seed"],
        dropout=setting(config, "caption_dropout", batches.DROPOUT),
        prior=prior,
        prior_share=setting(config.get("prior") or {}, "share", 0.5),
        alignment=alignment,
    )

    identity = run_identity(config, objective_values, checkpoint, images, examples, prior)
    validate = None
    if config.get("validation"):
        validate = Validation(model, prompts, autoencoder, config["validation"], folder / "validation")
    objective = make_objective(model, objective_values, config.get("loss_weighting"))

    def export(done):
        save_lora(model, checkpoint, folder / "steps" / f"{done:06}")

    export = export if config.get("lora") else None
    log = train(objective, batch_at, settings, folder / "run", validate=validate, export=export, identity=identity)

    if processes.is_main_process:
        save_curve(log, folder / "curve.png")
    if config.get("lora"):
        written = folder / "lora.safetensors"
        if processes.is_main_process:
            save_lora(model, checkpoint, folder)
    else:
        written = folder / "checkpoint"
        _save_checkpoint(model, checkpoint, objective_values, written)
    processes.wait_for_everyone()
    return written


def check_processes(config: dict, processes: int, sharded: bool):
    """Raises TrainingError for what several processes, or FSDP (`sharded`), do not allow, before any work is done."""
    settings = loop_settings(config)
    if config.get("lora") and sharded:
        raise TrainingError("FSDP is for all weights: train a LoRA without it, on as many GPUs as there are.")
    check_distribution(settings, processes, sharded, bool(settings.sample_every and config.get("validation")))


def rows_of(config: dict) -> tuple[int, int]:
    """Rows of a batch that describe an image, and that generate one."""
    ratio = config.get("ratio") or stages.RATIOS[3][:2]
    return batches.split_rows(config["rows"], (*ratio, 0))[:2]


def caption_limit(config: dict) -> int:
    """The most tokens of a caption or an answer."""
    return setting(config, "caption_tokens", CAPTION_TOKENS)


def image_tokens(model) -> int:
    """Positions of an image of the model's size, to generate."""
    size = model.params.siglip.image_size
    if model.family == JanusFlow.family:
        return model.image_tokens(size // VAE_DOWNSCALE, size // VAE_DOWNSCALE)
    return (size // model.params.vq.downscale) ** 2


def _autoencoder(model, checkpoint: Checkpoint, config: dict, device):
    """(the VQ model or VAE on a device, a function from pixels to its codes, its weights)."""
    if model.family == JanusFlow.family:
        if not config.get("vae"):
            raise CheckpointError("JanusFlow is trained on latents: name its VAE in the config.")
        vae = load_vae(config["vae"], device, channels=model.params.uvit.latent_channels)
        return vae, vae.encode, vae.vae.state_dict()
    vq = build_vq(checkpoint, dtype=torch.float32, device=device)
    return vq, lambda pixels: vq.encode_tokens(pixels.to(device)), vq.state_dict()


def _read_examples(config: dict, prompts: PromptEncoder) -> tuple[list[Example], list[Example]]:
    """The user's images and those for prior preservation, which may be none, with their texts cut to the limit."""
    limit = caption_limit(config)
    examples = cut_texts(read_folder(config["images"]), prompts, limit)
    prior = cut_texts(read_folder(config["prior"]["images"]), prompts, limit) if config.get("prior") else []
    if rows_of(config)[1] > 0:
        for group, folder in ((examples, config["images"]), (prior, (config.get("prior") or {}).get("images"))):
            if group and not any(one.caption for one in group):
                raise ImageError(f"{folder}: no image has a caption to generate it from: set ratio to [1, 0].")
    return examples, prior


def _save_checkpoint(model, checkpoint: Checkpoint, objective_values: dict, folder: Path):
    """Writes a fine-tuned model as a checkpoint; every process calls it, and the main process writes."""
    tensors = sharding.full_weights(model)
    if model.family != JanusFlow.family:
        tensors |= {name: weight for name, weight in checkpoint.tensors.items() if name.startswith(VQ_PREFIX)}
    if PartialState().is_main_process:
        config = {**checkpoint.config, TRAINED_WITH: objective_values}
        save_folder(replace(checkpoint, path=folder, tensors=tensors, config=config), folder)
