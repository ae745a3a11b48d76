"""The demos' autoencoders: the codebook of patch clusters, the phases of training, the VAE file with TAESD's names."""

import math

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from demo.recipe import autoencoders, scene_data, scenes, train_autoencoders
from janus_core.networks.vq import VQModel, VQParams, latent_to_tokens
from janus_core.training.loop import LoopSettings, train
from janus_core.vae import load_vae

PARAMS = VQParams(codebook_size=200, codebook_dim=8, z_channels=32, channels=(32,) * 5, res_blocks=1)


@pytest.fixture(scope="module")
def codebook():
    torch.manual_seed(0)
    return train_autoencoders.make_codebook(PARAMS, seed=0, scenes=60)


def test_codes_remain_distinct_in_bfloat16(codebook):
    codes = torch.nn.functional.normalize(codebook["codes"].bfloat16().float(), dim=-1)
    assert torch.equal(latent_to_tokens(codes.T[None, :, None], codes)[0], torch.arange(200))


def test_tokens_preserve_flat_patches_and_colours(codebook):
    pixels = scene_data.scene_pixels(scene_data.scene_list(1, 16))
    tokens = autoencoders.patch_tokens(pixels, codebook["centres"], 16)
    assert tokens.shape == (16, 64)
    corners = tokens[:, 0]
    for k, scene in enumerate(scene_data.scene_list(1, 16)):
        colours = codebook["centres"][corners[k]].view(-1, len(scenes.COLOURS)).mean(0)
        assert list(scenes.COLOURS)[colours.argmax()] == scene.background


@pytest.mark.parametrize("part", ("coarse", "decoder", "encoder"))
def test_a_part_trains_only_its_weights_and_its_loss_falls(part, codebook, tmp_path):
    torch.manual_seed(0)
    vq = VQModel(PARAMS)
    batch = autoencoders.image_batch(0, 0, 4, 32)
    autoencoders.initialise_vq(vq, batch["pixels"])
    vq.quantize.embedding.weight.data.copy_(codebook["codes"])
    objective = autoencoders.VQObjective(vq, codebook["centres"], part)
    before = {name: p.detach().clone() for name, p in vq.named_parameters()}
    settings = LoopSettings(steps=50, lr=2e-3, warmup=5, precision="no", log_every=10, ema=0.0)
    log = train(objective, lambda index: batch, settings, tmp_path)
    name = "tokens" if part == "encoder" else "reconstruction"
    assert log[-1][name] < log[0][name]
    moved = {name.split(".")[0] for name, p in vq.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"encoder", "quant_conv"} if part == "encoder" else {"decoder", "post_quant_conv"})


def test_the_vaes_losses_fall(tmp_path):
    torch.manual_seed(0)
    batch = autoencoders.image_batch(0, 0, 2, 32)
    settings = LoopSettings(steps=50, lr=1e-3, warmup=5, precision="no", log_every=10)
    log = train(autoencoders.VAEObjective(AutoencoderTiny()), lambda index: batch, settings, tmp_path)
    assert all(log[-1][name] < log[0][name] for name in ("reconstruction", "moments"))


def test_a_taesd_file_is_the_diffusers_network(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderTiny().to(torch.bfloat16).float()
    save_file(train_autoencoders.taesd_tensors(vae), tmp_path / "vae.safetensors")
    loaded = load_vae(tmp_path / "vae.safetensors")
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        z = loaded.encode(pixels)
        torch.testing.assert_close(z, vae.encode(pixels).latents)
        torch.testing.assert_close(loaded.decode(z), vae.decode(z).sample)


def test_reconstruction_and_moments():
    assert autoencoders.reconstruction_loss(torch.full((1, 2), 0.5), torch.zeros(1, 2)).item() == pytest.approx(0.75)
    z = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)  # mean 2, standard deviation sqrt(2)
    assert autoencoders.moments_loss(z).item() == pytest.approx(0.1 * (4 + (math.sqrt(2) - 1) ** 2))


@pytest.mark.parametrize("size", (64, scenes.SIZE))
def test_batches_are_reproducible(size):
    a, b = (autoencoders.image_batch(0, 3, 4, size)["pixels"] for _ in range(2))
    assert torch.equal(a, b) and a.shape == (4, 3, size, size) and a.abs().max() <= 1
    assert not torch.equal(a, autoencoders.image_batch(0, 4, 4, size)["pixels"])
