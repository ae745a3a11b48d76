"""The SDXL VAE that finishes JanusFlow's latents outside ComfyUI, by diffusers."""

from pathlib import Path

import torch

from .errors import CheckpointError

CONFIG = Path(__file__).parent / "sdxl_vae"


class LatentVAE:
    """Scaled latents (what JanusFlow reads and writes) to pixels and back.

    Args:
        vae: diffusers' AutoencoderKL or AutoencoderTiny.
    """

    def __init__(self, vae):
        self.vae = vae
        self.scale = vae.config.scaling_factor

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z: [B, 4, h, w]. Returns float32 pixels [B, 3, 8 h, 8 w] around [-1, 1]."""
        return self.vae.decode(z.to(self.vae.device, self.vae.dtype) / self.scale).sample.float()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: [B, 3, H, W] in [-1, 1], sides multiples of 8. Returns float32 z, the posterior's mode."""
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return posterior.mode().float() * self.scale


def load_vae(path: str | Path, device="cpu", dtype=torch.float32) -> LatentVAE:
    """Loads a diffusers VAE folder or a single VAE file in LDM's layout (sdxl_vae.safetensors), offline.

    float16 makes this VAE overflow, so it becomes float32.

    Raises:
        CheckpointError: nothing there, or not a VAE.
    """
    from diffusers import AutoencoderKL  # seconds to import, and only JanusFlow's pictures need it

    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no VAE at {path}.")
    dtype = torch.float32 if dtype == torch.float16 else dtype
    try:
        if path.is_dir():
            vae = AutoencoderKL.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
        else:
            vae = AutoencoderKL.from_single_file(
                str(path), config=str(CONFIG), torch_dtype=dtype, local_files_only=True
            )
    except Exception as error:  # diffusers raises many kinds for the same thing
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} could not be loaded as an SDXL VAE ({reason}).") from None
    return LatentVAE(vae.to(device).eval().requires_grad_(False))
