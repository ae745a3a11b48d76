"""The demos' autoencoders: the codebook of patches, the phases of training, the VAE file with TAESD's names."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from demo.recipe import autoencoders, bars, new_models, scene_data, scenes, textures, train_autoencoders
from demo.recipe.codebook import make_codebook, nearest, patch_tokens, to_patches
from janus_core.networks.vq import VQModel, VQParams, latent_to_tokens, tokens_to_latent
from janus_core.training.loop import train
from janus_core.training.objectives import image_token_loss
from janus_core.training.settings import LoopSettings
from janus_core.vae import load_vae

PARAMS = VQParams(codebook_size=490, codebook_dim=8, z_channels=32, channels=(32,) * 5, res_blocks=1)
CODEBOOK = {"seed": 0, "scenes": 40, "textures": 6, "texture_codes": 80, "rounds": 3}


@pytest.fixture(scope="module")
def codebook():
    return make_codebook(16, 8, CODEBOOK)


def test_codes_remain_distinct_in_bfloat16(codebook):
    codes = torch.nn.functional.normalize(codebook["codes"].bfloat16().float(), dim=-1)
    assert torch.equal(latent_to_tokens(codes.T[None, :, None], codes)[0], torch.arange(PARAMS.codebook_size))


def test_a_codebook_is_the_same_whenever_it_is_made(codebook):
    """With another number of threads, which adds up in another order, and another random state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    torch.manual_seed(5)
    try:
        again = make_codebook(16, 8, CODEBOOK)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(again[name], codebook[name]) for name in codebook)


def test_clusters_do_not_depend_on_the_order_of_additions(codebook):
    """Whole numbers are exact in float32: the nearest cluster is that of exact arithmetic."""
    pixels = scene_data.scene_pixels(scene_data.scene_list(1, 4))
    patches, centres = to_patches(pixels, 16), codebook["textures"]
    exact = (patches.double()[:, None] - centres.double()).square().sum(-1)
    assert torch.equal(nearest(patches, centres.float()), exact.argmin(1))


def test_tokens_preserve_flat_patches_and_colours(codebook):
    listed = [scene for scene in scene_data.scene_list(1, 20) if scene.objects]
    pixels = scene_data.scene_pixels(listed)
    tokens = patch_tokens(pixels, codebook["scenes"], 16)
    assert tokens.shape == (len(listed), 64)
    centre = codebook["scenes"][tokens].float()
    patches = to_patches(pixels, 16).view(len(listed), 64, -1)
    flat = (patches.unflatten(2, (-1, 3)) == patches[:, :, None, :3]).all(3).all(2)
    assert flat.sum() > 500 and torch.equal(centre[flat], patches[flat])
    for scene, corner in zip(listed, centre[:, 0]):
        shares = new_models.colour_shares(corner[None]).view(-1, len(scenes.WIDER.colours)).mean(0)
        assert list(scenes.WIDER.colours)[shares.argmax()] == scene.background


ENCODER, DECODER = {"encoder", "quant_conv"}, {"decoder", "post_quant_conv"}


@pytest.mark.parametrize(
    "part, trained", [("coarse", DECODER), ("decoder", DECODER), ("encoder", ENCODER), ("joint", ENCODER | DECODER)]
)
def test_a_part_trains_only_its_weights_and_its_loss_falls(part, trained, codebook, tmp_path):
    torch.manual_seed(0)
    vq = VQModel(PARAMS)
    pixels, is_texture = autoencoders.image_batch(0, 0, 4, 32)
    assert len(set(is_texture.tolist())) == 2
    centres = torch.cat((codebook["scenes"], codebook["textures"]))
    batch = {"pixels": pixels, "tokens": patch_tokens(pixels, centres, 16), "is_texture": is_texture}
    autoencoders.initialise_vq(vq, pixels)
    vq.quantize.embedding.weight.data.copy_(codebook["codes"])
    objective = autoencoders.VQObjective(vq, part)
    before = {name: p.detach().clone() for name, p in vq.named_parameters()}
    settings = LoopSettings(steps=50, lr=2e-3, warmup=5, precision="no", log_every=10, ema=0.0)
    log = train(objective, lambda index: batch, settings, tmp_path)
    name = "tokens" if part == "encoder" else "reconstruction"
    assert log[-1][name] < log[0][name]
    moved = {name.split(".")[0] for name, p in vq.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained


def test_jointly_scenes_keep_their_codes_and_textures_choose(codebook):
    """The decoder gets the codes of a scene's patches and a texture's own choice; the reconstruction moves the encoder
    of textures only."""
    torch.manual_seed(0)
    vq = VQModel(PARAMS)
    pixels = autoencoders.image_batch(0, 0, 4, 32)[0]
    autoencoders.initialise_vq(vq, pixels)
    vq.quantize.embedding.weight.data.copy_(codebook["codes"])
    tokens = patch_tokens(pixels, codebook["scenes"], 16)
    seen, objective = [], autoencoders.VQObjective(vq, "joint")
    vq.post_quant_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    for is_texture in (False, True):
        vq.zero_grad()
        batch = {"pixels": pixels, "tokens": tokens, "is_texture": torch.full((4,), is_texture)}
        objective(batch)["reconstruction"].backward()
        moved = vq.encoder.conv_in.weight.grad
        assert bool(moved is not None and moved.any()) == is_texture
    of_tokens = tokens_to_latent(tokens, codebook["codes"], (2, 2))
    torch.testing.assert_close(seen[0], torch.nn.functional.normalize(of_tokens, dim=1))
    torch.testing.assert_close(seen[1], vq.encode(pixels))


def test_the_weights_of_the_losses():
    """Jointly, scenes keep more of the encoder's cross-entropy than textures."""
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 4, 9), torch.randint(9, (2, 4))
    kinds = torch.tensor([False, True])
    scene, texture = (image_token_loss(logits[k : k + 1], tokens[k : k + 1]) for k in range(2))
    vq = VQModel(PARAMS)
    alone = autoencoders.VQObjective(vq, "encoder").classification_loss(logits, tokens, kinds)
    jointly = autoencoders.VQObjective(vq, "joint").classification_loss(logits, tokens, kinds)
    torch.testing.assert_close(alone, (scene + texture) / 2)
    torch.testing.assert_close(jointly, 0.3 * scene + 0.05 * texture)


def test_the_reconstruction_loss():
    """`squared` weighs the squared errors, `focus` the tokens that are not flat."""
    flat, edge = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.5)
    edge[..., 8:] = -0.5
    loss = autoencoders.reconstruction_loss
    zeros = torch.zeros(1, 3, 16, 32)
    assert [loss(zeros[..., :16], flat, squared).item() for squared in (1.0, 5.0)] == [0.75, 1.75]
    both, right = torch.cat((flat, edge), dim=3), torch.cat((flat, torch.zeros_like(edge)), dim=3)
    assert loss(right, both).item() == pytest.approx(0.75 / 2)
    assert loss(right, both, focus=3.0).item() == pytest.approx(0.75 * 4 / 5)


def test_the_vaes_losses_fall(tmp_path):
    torch.manual_seed(0)
    batch = {"pixels": autoencoders.image_batch(0, 0, 2, 32)[0]}
    settings = LoopSettings(steps=50, lr=1e-3, warmup=5, precision="no", log_every=10)
    log = train(autoencoders.VAEObjective(AutoencoderTiny()), lambda index: batch, settings, tmp_path)
    assert all(log[-1][name] < log[0][name] for name in ("reconstruction", "moments"))


def test_a_phase_of_the_vaes_decoder_preserves_its_latents(tmp_path):
    vae, batch = AutoencoderTiny(), {"pixels": autoencoders.image_batch(0, 0, 2, 32)[0]}
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    settings = LoopSettings(steps=1, lr=1e-3, warmup=1, precision="no")
    train(autoencoders.VAEObjective(vae, "decoder"), lambda index: batch, settings, tmp_path)
    changed = {name.split(".")[0] for name, weight in vae.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"decoder"}
    assert all(p.requires_grad for p in autoencoders.VAEObjective(vae).parameters())


def test_a_taesd_file_is_the_diffusers_network(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderTiny().to(torch.bfloat16).float()
    save_file(train_autoencoders.taesd_tensors(vae), tmp_path / "vae.safetensors")
    loaded = load_vae(tmp_path / "vae.safetensors")
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        z = loaded.encode(pixels)
        torch.testing.assert_close(z, train_autoencoders.LATENT_WIDTH * vae.encode(pixels).latents)
        torch.testing.assert_close(loaded.decode(z), vae.decode(vae.encode(pixels).latents).sample)


def test_a_vq_goes_on_from_weights_that_fit():
    """The other model's codes are wider, so its layers next to the codebook do not fit."""
    wider = VQModel(dataclasses.replace(PARAMS, codebook_dim=16))
    vq = VQModel(PARAMS)
    autoencoders.initialise_vq(vq, autoencoders.image_batch(0, 0, 4, 32)[0], wider.state_dict())
    other = wider.state_dict()
    same = {name for name, weight in vq.state_dict().items() if torch.equal(weight, other[name])}
    kept = {name for name in other if not name.startswith(("quantize.", "quant_conv.", "post_quant_conv.weight"))}
    assert same == kept
    assert vq.post_quant_conv.weight.shape == (32, 8, 1, 1)
    z = vq.quant_conv(vq.encoder(autoencoders.image_batch(0, 0, 4, 32)[0]))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)


def test_reconstruction_and_moments():
    assert autoencoders.reconstruction_loss(torch.full((1, 2), 0.5), torch.zeros(1, 2)).item() == pytest.approx(0.75)
    z = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)  # mean 2, standard deviation sqrt(2)
    assert autoencoders.moments_loss(z).item() == pytest.approx(0.1 * (4 + (math.sqrt(2) - 1) ** 2))


@pytest.mark.parametrize("size", (64, scenes.SIZE))
def test_batches_are_reproducible(size):
    a, b = (autoencoders.image_batch(0, 3, 4, size)[0] for _ in range(2))
    assert torch.equal(a, b) and a.shape == (4, 3, size, size) and a.abs().max() <= 1
    assert not torch.equal(a, autoencoders.image_batch(0, 4, 4, size)[0])


def test_no_crop_is_flat():
    batches = [autoencoders.image_batch(1, k, 16, 64, textures=1.0) for k in range(6)]
    pixels, is_texture = (torch.cat(part) for part in zip(*batches))
    assert is_texture.all() and not autoencoders.image_batch(1, 0, 4, 64, textures=0.0)[1].any()
    assert pixels.std((2, 3)).amax(1).min() > 0.04


@pytest.mark.parametrize("kind", textures.KINDS)
def test_textures_vary_and_are_reproducible(kind):
    a, b = (textures.texture(kind, random.Random(1)) for _ in range(2))
    assert a.shape == (scenes.SIZE, scenes.SIZE, 3) and a.dtype == np.uint8 and (a == b).all()
    rng = random.Random(2)
    assert len({textures.texture(kind, rng).tobytes() for _ in range(20)}) == 20


def test_test_glyphs_are_held_out():
    assert not set(textures.TRAIN_GLYPHS) & set(textures.TEST_GLYPHS)


def test_psnr():
    image = torch.zeros(1, 3, 4, 4)
    assert bars.psnr(image + 0.2, image).item() == pytest.approx(20)
