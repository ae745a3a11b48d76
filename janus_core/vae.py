"""JanusFlow's VAE outside ComfyUI, through diffusers: SDXL's, or a small one like TAESD."""

import re
from pathlib import Path

import torch

from .checkpoint.files import read_header, read_tensors
from .errors import CheckpointError, ImageError, library_errors
from .files import read_json, regular_file, user_path

CONFIG = Path(__file__).parent / "sdxl_vae"
SDXL_SCALE = 0.13025  # scaled latent = SDXL_SCALE * the latent of an SDXL VAE


class LatentVAE:
    """Converts between JanusFlow's scaled latents z and pixels.

    Args:
        vae: diffusers' AutoencoderKL or AutoencoderTiny.
        scale: z divided by the network's own latent; the VAE's scaling_factor when None.
    """

    def __init__(self, vae, scale: float | None = None):
        self.vae = vae
        self.scale = vae.config.scaling_factor if scale is None else scale

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z: [B, 4, h, w]. Returns float32 pixels [B, 3, 8 h, 8 w] around [-1, 1]."""
        return self.vae.decode(z.to(self.vae.device, self.vae.dtype) / self.scale).sample.float()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: [B, 3, H, W] in [-1, 1], H and W multiples of 8. Returns float32 z, the mode of the posterior.

        Raises:
            ImageError: the latents are not finite.
        """
        encoded = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        if not latents.isfinite().all():
            raise ImageError("The VAE's latents are not finite: use another VAE.")
        return latents.float() * self.scale


def load_vae(path: str | Path, device="cpu", dtype=torch.float32, channels: int = 4) -> LatentVAE:
    """Loads a VAE, offline: a diffusers folder, or a single file in LDM's layout (sdxl_vae.safetensors) or TAESD's.

    SDXL's overflows in float16, so float32 is used instead.

    Args:
        channels: of the latents that it must decode.

    Raises:
        CheckpointError: there is no such file, or it is not a VAE.
    """
    path = user_path(path)
    if not path.exists():
        raise CheckpointError(f"There is no VAE at {path} (`python -m janus_core download --vae` fetches SDXL's).")
    dtype = torch.float32 if dtype == torch.float16 else dtype
    advice = "`python -m janus_core download --vae` fetches SDXL's, which is one"
    with library_errors(CheckpointError, f"{path} is not a usable SDXL VAE, {advice}"):  # diffusers raises many types
        vae, scale = _load_folder(path, dtype) if path.is_dir() else _load_file(path, dtype)
        if any(weight.is_meta for weight in vae.parameters()):
            raise CheckpointError(f"{path} lacks weights of a VAE: {advice}.")
        vae = vae.to(device).eval().requires_grad_(False)
    if vae.config.latent_channels != channels:
        raise CheckpointError(
            f"{path} is a VAE of {vae.config.latent_channels} channels, the model's latents have {channels}: {advice}."
        )
    return LatentVAE(vae, scale)


def _load_folder(path: Path, dtype):
    """(a VAE of diffusers, None) from a folder in its layout."""
    from diffusers import AutoencoderKL, AutoencoderTiny  # takes seconds to import, and only JanusFlow needs it

    kind = AutoencoderTiny if read_json(path / "config.json").get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    vae, info = kind.from_pretrained(
        path, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    wrong = [str(name) for key in ("missing_keys", "mismatched_keys") for name in info.get(key) or ()]
    if wrong:  # diffusers would leave them random
        raise CheckpointError(f"{path} lacks weights of a VAE, {wrong[0]} first: download it again.")
    return vae, None


def _load_file(path: Path, dtype):
    """(a VAE of diffusers, its scale) from a single file."""
    from diffusers import AutoencoderKL

    regular_file(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is not a .safetensors file: use sdxl_vae.safetensors or a diffusers folder.")
    if _is_taesd(path):
        return _load_taesd(path, dtype)
    vae = AutoencoderKL.from_single_file(str(path), config=str(CONFIG), torch_dtype=dtype, local_files_only=True)
    return vae, None


def _is_taesd(path: Path) -> bool:
    return "taesd_decoder.1.weight" in read_header(path)[1]


def _load_taesd(path: Path, dtype):
    """An AutoencoderTiny with a TAESD file's weights, and its scale (see LatentVAE).

    Layer 0 of a TAESD decoder is a clamp, which diffusers applies outside of its layers. `vae_scale` converts an SDXL
    latent into the decoder's input.
    """
    from diffusers import AutoencoderTiny

    tensors = read_tensors(path)
    scale = SDXL_SCALE / float(tensors.pop("vae_scale", SDXL_SCALE))
    if not 0 < scale < 100:
        raise CheckpointError(f"{path} has a vae_scale that is not a positive number: download it again.")
    if float(tensors.pop("vae_shift", 0.0)) != 0:
        raise CheckpointError(f"{path} is a TAESD of another model (it shifts latents): use one made for SDXL.")
    weights = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"taesd_(encoder|decoder)\.([0-9]{1,3})\.(.+)", name)
        if not match or not tensor.is_floating_point():
            raise CheckpointError(f"{path} is not a TAESD: {name} is not one of its weights.")
        part, index, rest = match.groups()
        weights[f"{part}.layers.{int(index) - (part == 'decoder')}.{rest}"] = tensor
    vae = AutoencoderTiny()
    vae.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    return vae, scale
