"""Fine-tuning any checkpoint on a folder of captioned images: all weights of a stage, or a LoRA."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ..checkpoint import VQ_PREFIX, build_vq, read_checkpoint, save_folder, save_lora
from ..errors import CheckpointError, ImageError, TrainingError
from ..janusflow import VAE_DOWNSCALE, JanusFlow
from ..networks.vq import latent_to_tokens
from ..prompt import PromptEncoder
from ..vae import load_vae
from . import batches, sharding, stages
from .curves import save_curve
from .encoded import EncodedImages, fingerprint
from .folder_batches import FolderBatches
from .folder_data import cut_texts, read_folder
from .loop import train
from .settings import loop_settings
from .trained_model import TRAINED_WITH, build_trained_model, make_objective, objective_settings
from .validation import Validation, move_autoencoder

CAPTION_TOKENS = 256
SAMPLE = 4096  # values of each tensor in the fingerprint of a checkpoint
FILES = ("checkpoint", "vae", "images", "prior.images")  # known by what they hold
NEUTRAL = (  # settings that do not change the result
    *("task", "folder", "cache", "validation", "gradient_checkpointing", "loop.workers", "loop.tensorboard"),
    *("loop.log_every", "loop.save_every", "loop.sample_every", "loop.ema_device", *FILES),
)


def finetune(config: dict, folder: Path) -> Path:
    """Fine-tunes as configs/finetune.json says.

    Returns:
        The folder of the fine-tuned checkpoint; with `lora` the file of the LoRA.

    Raises:
        CheckpointError: the checkpoint cannot be read or trained, or the VAE of a JanusFlow is not named.
        ImageError: an image or a caption is missing or cannot be read.
        TrainingError: a loss is not finite, the folder's state is of another run, or a library is missing.
        OutputError: the result cannot be written.
    """
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator does
    if config.get("lora") and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise TrainingError("FSDP is for all weights: train a LoRA without it, on as many GPUs as there are.")
    torch.manual_seed(config["seed"])
    checkpoint = read_checkpoint(config["checkpoint"])
    model = build_trained_model(checkpoint, config)
    prompts = PromptEncoder.of(checkpoint)
    objective = objective_settings(config, checkpoint.config, checkpoint.path)
    autoencoder, encode, weights = _autoencoder(model, checkpoint, config, processes.device)
    limit = config.get("caption_tokens") or CAPTION_TOKENS
    examples = cut_texts(read_folder(config["images"]), prompts, limit)
    prior = config.get("prior") or {}
    prior_examples = cut_texts(read_folder(prior["images"]), prompts, limit) if prior else []
    rows = rows_of(config)
    if rows[1] and not all(any(one.caption for one in group) for group in (examples, prior_examples) if group):
        raise ImageError(f"{config['images']}: no image has a caption to generate it from: set ratio to [1, 0].")
    alignment = model.family == JanusFlow.family and objective["repa"] > 0
    parts = {"understanding": rows[0], "generation": rows[1] and alignment, "codes": rows[1]}
    images = EncodedImages(
        Path(config.get("cache") or folder / "cache"),
        model.params.siglip.image_size,
        encode,
        fingerprint(weights),
        [part for part, wanted in parts.items() if wanted],
    )
    paths = [one.path for one in (*examples, *prior_examples)]
    images.prepare(paths, processes.process_index, processes.num_processes)
    processes.wait_for_everyone()
    move_autoencoder(autoencoder, "cpu")
    batch_at = FolderBatches(
        prompts,
        examples,
        images,
        image_tokens(model),
        model.params.siglip.tokens,
        rows,
        config["seed"],
        dropout=batches.DROPOUT if config.get("caption_dropout") is None else config["caption_dropout"],
        prior=prior_examples,
        prior_share=0.5 if prior.get("share") is None else prior["share"],
        alignment=alignment,
    )
    settings = loop_settings(config)
    identity = {
        **_result_settings(config),
        **objective,
        "checkpoint": fingerprint(checkpoint.tensors, SAMPLE)[:16],
        "autoencoder": images.preparation,
        "images": _data_fingerprint(examples, images.hashes),
        "prior images": _data_fingerprint(prior_examples, images.hashes),
    }
    validate = None
    if config.get("validation"):
        validate = Validation(model, prompts, autoencoder, config["validation"], folder / "validation")
    module = make_objective(model, objective, config.get("loss_weighting") or "examples")
    log = train(module, batch_at, settings, folder / "run", validate=validate, identity=identity)
    if config.get("lora"):
        written = folder / "lora.safetensors"
    else:
        written, tensors = folder / "checkpoint", sharding.full_weights(model)
        if autoencoder is not None and model.family != JanusFlow.family:
            tensors |= {name: weight for name, weight in checkpoint.tensors.items() if name.startswith(VQ_PREFIX)}
    if processes.is_main_process:
        save_curve(log, folder / "curve.png")
        if config.get("lora"):
            save_lora(model, checkpoint, folder)
        else:
            trained = {**checkpoint.config, TRAINED_WITH: objective}
            save_folder(replace(checkpoint, path=written, tensors=tensors, config=trained), written)
    processes.wait_for_everyone()
    return written


def rows_of(config: dict) -> tuple[int, int]:
    """Rows of a batch that describe an image, and that generate one."""
    ratio = config.get("ratio") or stages.RATIOS[3][:2]
    return batches.split_rows(config["rows"], (*ratio, 0))[:2]


def image_tokens(model) -> int:
    """Positions of an image of the model's size, to generate."""
    size = model.params.siglip.image_size
    if model.family == JanusFlow.family:
        return model.image_tokens(size // VAE_DOWNSCALE, size // VAE_DOWNSCALE)
    return (size // model.params.vq.downscale) ** 2


def _autoencoder(model, checkpoint, config: dict, device):
    """(the VQ model or VAE on a device, a function from pixels to its codes, its weights)."""
    if model.family == JanusFlow.family:
        if not config.get("vae"):
            raise CheckpointError("JanusFlow is trained on latents: name its VAE in the config.")
        vae = load_vae(config["vae"], device, channels=model.params.uvit.latent_channels)
        return vae, vae.encode, vae.vae.state_dict()
    vq = build_vq(checkpoint, dtype=torch.float32, device=device)

    def encode(pixels):
        pixels = pixels.to(device)
        return latent_to_tokens(vq.encode(pixels), vq.codebook(pixels))

    return vq, encode, vq.state_dict()


def _result_settings(config: dict) -> dict:
    """The settings that change a run's result, by dotted name; files and folders are known by what they hold."""
    settings = {}
    for name, value in config.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        settings |= {f"{name}.{key}".rstrip("."): one for key, one in inner if name not in NEUTRAL}
    return {name: value for name, value in settings.items() if name not in NEUTRAL and value is not None}


def _data_fingerprint(examples, hashes: dict) -> str:
    """The number of images and a hash of all that is trained on."""
    content = json.dumps([(hashes[one.path], one.caption, one.questions, one.repeats) for one in examples])
    return f"{len(examples)} images, {hashlib.sha256(content.encode()).hexdigest()[:16]}"
