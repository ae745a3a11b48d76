"""JanusFlow's VAE outside ComfyUI, through diffusers: SDXL's, or a small one like TAESD."""

import re
from pathlib import Path

import torch

from .checkpoint.files import read_header, read_json, read_tensors
from .errors import CheckpointError, first_line

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
        """pixels: [B, 3, H, W] in [-1, 1], H and W multiples of 8. Returns float32 z, the mode of the posterior."""
        encoded = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents.float() * self.scale


def load_vae(path: str | Path, device="cpu", dtype=torch.float32) -> LatentVAE:
    """Loads a VAE, offline: a diffusers folder, or a single file in LDM's layout (sdxl_vae.safetensors) or TAESD's.

    SDXL's overflows in float16, so float32 is used instead.

    Raises:
        CheckpointError: there is no such file, or it is not a VAE.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny  # takes seconds to import, and only JanusFlow needs it

    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no VAE at {path} (`python -m janus_core download --vae` fetches SDXL's).")
    dtype = torch.float32 if dtype == torch.float16 else dtype
    scale = None
    try:
        if path.is_dir():
            tiny = read_json(path / "config.json").get("_class_name") == "AutoencoderTiny"
            kind = AutoencoderTiny if tiny else AutoencoderKL
            vae = kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
        elif _is_taesd(path):
            vae, scale = _load_taesd(path, dtype)
        else:
            vae = AutoencoderKL.from_single_file(
                str(path), config=str(CONFIG), torch_dtype=dtype, local_files_only=True
            )
    except Exception as error:  # diffusers raises many types for the same problem
        raise CheckpointError(
            f"{path} is not a usable SDXL VAE ({first_line(error)}): `python -m janus_core download --vae` fetches one."
        ) from None
    return LatentVAE(vae.to(device).eval().requires_grad_(False), scale)


def _is_taesd(path: Path) -> bool:
    return path.suffix == ".safetensors" and "taesd_decoder.1.weight" in read_header(path)[1]


def _load_taesd(path: Path, dtype):
    """An AutoencoderTiny with a TAESD file's weights, and its scale (see LatentVAE).

    Layer 0 of a TAESD decoder is a clamp, which diffusers applies outside of its layers. `vae_scale` converts an SDXL
    latent into the decoder's input.
    """
    from diffusers import AutoencoderTiny

    tensors = read_tensors(path)
    scale = SDXL_SCALE / float(tensors.pop("vae_scale", SDXL_SCALE))
    if float(tensors.pop("vae_shift", 0.0)) != 0:
        raise CheckpointError(f"{path} is a TAESD of another model (it shifts latents): use one made for SDXL.")
    weights = {}
    for name, tensor in tensors.items():
        part, index, rest = re.fullmatch(r"taesd_(encoder|decoder)\.(\d+)\.(.+)", name).groups()
        weights[f"{part}.layers.{int(index) - (part == 'decoder')}.{rest}"] = tensor
    vae = AutoencoderTiny()
    vae.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    return vae, scale
