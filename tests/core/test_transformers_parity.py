"""transformers' own Janus, on a small random model in the converted layout, as a second reference."""

import pytest
import torch
from converted import make_converted

import janus_core
from janus_core.checkpoint import read_checkpoint, save_single_file
from janus_core.networks.vq import tokens_to_latent
from janus_core.sampling.settings import TokenSamplerSettings
from janus_core.sampling.tokens import sample_image_tokens

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pair(golden, tmp_path_factory):
    """(transformers' model, our pipeline, folder)."""
    folder = tmp_path_factory.mktemp("converted")
    theirs = make_converted(folder, golden("ar-a").folder)
    return theirs, janus_core.load(folder, device="cpu"), folder


@torch.no_grad()
def test_text_logits(pair):
    theirs, ours, _ = pair
    ids = torch.randint(0, 640, (2, 20), generator=torch.Generator().manual_seed(1))
    hidden = ours.model.llama(ours.model.embed_text(ids, torch.float32))
    assert torch.allclose(ours.model.text_logits(hidden), theirs(input_ids=ids).logits, atol=TOLERANCE)


@torch.no_grad()
def test_vision_features(pair):
    theirs, ours, _ = pair
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = theirs.model.get_image_features(pixels)
    features = getattr(features, "pooler_output", features)  # transformers 4 gives the tensor itself
    assert torch.allclose(ours.model.embed_images(pixels), features, atol=TOLERANCE)


@torch.no_grad()
def test_greedy_image_tokens_and_their_logits(pair):
    theirs, ours, _ = pair
    prompts = ours.prompts
    ids = prompts.generation_ids("a red circle")
    theirs.generation_config.generation_kwargs = {"boi_token_id": prompts.begin}
    expected = theirs.generate(
        ids[None], attention_mask=torch.ones(1, len(ids), dtype=torch.long), generation_mode="image", do_sample=False,
        guidance_scale=5, bos_token_id=prompts.bos, pad_token_id=prompts.pad, eos_token_id=prompts.eos, max_length=1000,
    )  # fmt: skip
    tokens = ours.generate_tokens("a red circle", temperature=0)
    assert tokens.unique().numel() > 4
    assert torch.equal(tokens, expected)

    rows = torch.stack((ids, prompts.unconditional(len(ids)).ids))
    images = theirs.prepare_embeddings_for_image_generation(expected[:, :-1]).repeat(2, 1, 1)
    embeds = torch.cat((theirs.get_input_embeddings()(rows), images), dim=1)
    states = theirs.model.language_model(inputs_embeds=embeds).last_hidden_state[:, len(ids) - 1 :]
    c, u = theirs.model.generation_head(states)
    settings = TokenSamplerSettings(guidance=5, temperature=0)
    steps = sample_image_tokens(ours.model, *ours.encode_prompt("a red circle"), expected.shape[1], settings)
    logits = torch.cat([step.logits for step in steps])
    assert torch.allclose(logits, u + 5 * (c - u), atol=1e-3)


@torch.no_grad()
def test_vq(pair):
    theirs, ours, _ = pair
    tokens = torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(1))
    pixels = ours.decode_pixels(tokens_to_latent(tokens, ours.codebook, (4, 4)))
    assert torch.allclose(pixels.permute(0, 2, 3, 1), theirs.decode_image_tokens(tokens), atol=TOLERANCE)
    # Unlike the original implementation, their quantiser does not normalise, so the encoders are compared before it.
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = theirs.model.vqmodel.quant_conv(theirs.model.vqmodel.encoder(image))
    assert torch.allclose(ours.vq.quant_conv(ours.vq.encoder(image)), expected, atol=TOLERANCE)


def test_converted_to_single_file_gives_identical_tensors(pair, tmp_path):
    _, ours, folder = pair
    checkpoint = read_checkpoint(folder)
    save_single_file(checkpoint, tmp_path / "one.safetensors")
    written = read_checkpoint(tmp_path / "one.safetensors").tensors
    assert written.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(written[n], t) and written[n].dtype == t.dtype for n, t in checkpoint.tensors.items())
    single = janus_core.load(tmp_path / "one.safetensors", device="cpu")
    assert single.model.params == ours.model.params
    assert torch.equal(single.generate_tokens("a", temperature=0), ours.generate_tokens("a", temperature=0))


def test_role_names_come_from_the_chat_template(pair, golden, tmp_path):
    _, ours, folder = pair
    assert ours.prompts.user == "<|User|>"
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in folder.iterdir():
        (plain / file.name).symlink_to(file)
    (plain / "chat_template.jinja").unlink()
    (plain / "chat_template.jinja").write_text("User: {{ messages[0]['content'] }}\n\nAssistant:", encoding="utf-8")
    assert janus_core.load(plain, device="cpu").prompts.user == "User"
