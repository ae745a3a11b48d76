"""JanusFlow's VAE outside ComfyUI: a diffusers folder and a single file, offline."""

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file
from sdxl_layout import write_sdxl_vae

import janus_core
from janus_core.errors import CheckpointError, SamplingError
from janus_core.vae import load_vae


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(diffusers' model, its folder, the single file)."""
    folder = tmp_path_factory.mktemp("vae")
    vae = write_sdxl_vae(folder / "sdxl_vae.safetensors")
    vae.save_pretrained(folder / "diffusers")
    return vae.float(), folder / "diffusers", folder / "sdxl_vae.safetensors"


def test_both_layouts_give_the_same_images_and_latents(files):
    reference, *paths = files
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.decode(z / 0.13025).sample
        latents = reference.encode(expected).latent_dist.mode() * 0.13025
        for path in paths:
            vae = load_vae(path)
            assert torch.allclose(vae.decode(z), expected, atol=1e-4)
            assert torch.allclose(vae.encode(expected), latents, atol=1e-4)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_taesd(tmp_path, scale):
    """A file in TAESD's layout: its decoder starts with a clamp, which shifts the layers' numbers by 1."""
    torch.manual_seed(0)
    vae = AutoencoderTiny().eval()
    tensors = {}
    for name, weight in vae.state_dict().items():
        part, _, index, rest = name.split(".", 3)
        tensors[f"taesd_{part}.{int(index) + (part == 'decoder')}.{rest}"] = weight.contiguous()
    if scale:
        tensors["vae_scale"] = torch.tensor(scale)
    save_file(tensors, tmp_path / "taesd.safetensors")
    ours, z, pixels = load_vae(tmp_path / "taesd.safetensors"), torch.randn(1, 4, 4, 4), torch.rand(1, 3, 16, 16)
    factor = 0.13025 / scale if scale else 1  # z is 0.13025 times SDXL's latent, `scale` times that is TAESD's
    with torch.no_grad():
        assert torch.allclose(ours.decode(z), vae.decode(z / factor).sample, atol=1e-5)
        assert torch.allclose(ours.encode(pixels), vae.encode(pixels).latents * factor, atol=1e-5)
    save_file({**tensors, "vae_shift": torch.tensor(0.1)}, tmp_path / "taesd.safetensors")
    with pytest.raises(CheckpointError, match="shift"):
        load_vae(tmp_path / "taesd.safetensors")


def test_float16_becomes_float32(files):
    assert load_vae(files[2], dtype=torch.float16).vae.dtype == torch.float32


def test_an_image_through_the_pipeline(golden, files):
    pipe = janus_core.load(golden("flow-a").folder, device="cpu", dtype=torch.float32, vae=files[2])
    assert pipe("a cat", steps=2)[0].size == (96, 96)
    latents = pipe.encode(Image.new("RGB", (100, 70)))
    assert latents.shape == (1, 4, 8, 12)
    assert pipe("a cat", latents=latents, denoise=0.5, steps=2)[0].size == (96, 64)


def test_without_a_vae_there_are_latents_only(golden):
    pipe = janus_core.load(golden("flow-a").folder, device="cpu")
    assert pipe.generate_latents("a", steps=1).shape == (1, 4, 12, 12)
    with pytest.raises(SamplingError, match="SDXL VAE"):
        pipe("a")


def test_files_that_are_not_a_vae(golden, tmp_path):
    for path in (tmp_path / "nowhere", golden("flow-a").folder, golden("flow-a").folder / "model.safetensors"):
        with pytest.raises(CheckpointError):
            load_vae(path)
