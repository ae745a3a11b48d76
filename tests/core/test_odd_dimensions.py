"""Dimensions that the golden checkpoints do not have are read from shapes and config, and used in the right place."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import janus_core
from janus_core.checkpoint import build_model, build_vq, read_checkpoint
from janus_core.checkpoint.params import janus_params, janusflow_params
from janus_core.errors import CheckpointError
from janus_core.janus import Janus, JanusParams
from janus_core.janusflow import JanusFlow, JanusFlowParams
from janus_core.networks.llama import LlamaParams
from janus_core.networks.siglip import SiglipParams
from janus_core.networks.uvit import GlobalResponseNorm, UViTParams
from janus_core.networks.vq import VQModel, VQParams


@pytest.fixture
def folder(golden, tmp_path):
    """A function that copies a golden checkpoint with modified config and weights."""

    def make(name, config=lambda c: None, tensors=lambda t: t):
        target = tmp_path / name
        shutil.copytree(golden(name).folder, target, ignore=shutil.ignore_patterns("expected*", "picture*"))
        values = json.loads((target / "config.json").read_text())
        config(values)
        (target / "config.json").write_text(json.dumps(values))
        save_file(tensors(load_file(target / "model.safetensors")), target / "model.safetensors")
        return target

    return make


def random_state(model):
    torch.manual_seed(0)
    return {name: 0.1 * torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("channels,base", [((32, 64), None), ((64, 64), 32), ((32, 32, 64, 96), None), ((96,), 32)])
def test_vq_levels_and_first_convolution(folder, channels, base):
    params = VQParams(256, 8, 32, channels, res_blocks=1, base_channels=base)
    state = {f"gen_vision_model.{n}": t for n, t in random_state(VQModel(params)).items()}
    path = folder("ar-a", tensors=lambda t: {**{n: v for n, v in t.items() if "gen_vision_model" not in n}, **state})
    vq = build_vq(read_checkpoint(path), dtype=torch.float32)
    assert vq.params.channels == channels and vq.params.downscale == 2 ** (len(channels) - 1)
    latent = vq.encode(torch.rand(1, 3, 32, 32))
    assert vq.decode(latent).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("kernel,stride,padding", [(3, 2, None), (2, 2, 0), (7, 4, None), (4, 4, 0)])
@pytest.mark.parametrize("stride_in_config", [True, False])
def test_flow_encoder_kernel_and_stride(folder, golden, kernel, stride, padding, stride_in_config):
    """Kernel from the weight; stride from config or upsampling layers; padding from config or kernel - stride."""
    checkpoint = read_checkpoint(golden("flow-a").folder)
    params = build_model(checkpoint).params
    upsamples = stride.bit_length() - 1
    uvit = replace(params.uvit, kernel=kernel, stride=stride, padding=kernel - stride, upsamples=upsamples)
    state = random_state(JanusFlow(replace(params, uvit=uvit)))

    def config(values):
        encoder = values["vision_gen_enc_config"]["params"]
        encoder.pop("kernel_size")
        encoder.pop("padding")
        encoder.pop("stride")
        values["vision_gen_dec_config"]["params"]["upsamples"] = upsamples
        if stride_in_config:
            encoder["stride"] = stride
        if padding is not None:
            encoder["padding"] = padding

    path = folder("flow-a", config, lambda t: state)
    pipe = janus_core.load(path, device="cpu")
    assert pipe.model.params.uvit == uvit
    assert pipe.generate_latents("a", steps=1).shape == (1, 4, 12, 12)


def test_flow_decoder_has_its_own_norm_eps(folder, golden):
    plain = janus_core.load(golden("flow-a").folder, device="cpu", dtype=torch.float32)
    changed = folder("flow-a", lambda c: c["vision_gen_dec_config"]["params"].update(norm_eps=0.1))
    pipe = janus_core.load(changed, device="cpu", dtype=torch.float32)
    assert pipe.model.params.uvit.decoder_norm_eps == 0.1 and pipe.model.params.uvit.norm_eps == 1e-6
    assert not torch.allclose(pipe.generate_latents("a", steps=2), plain.generate_latents("a", steps=2), atol=1e-3)


def test_grouped_query_attention(folder, golden):
    """One key/value head shared by three query heads equals three heads with the same weights."""

    def tensors(t):
        for name in list(t):
            if ".k_proj." in name or ".v_proj." in name:
                t[name] = t[name][:32].clone()
        return t

    grouped = folder("ar-a", lambda c: c["language_config"].update(num_key_value_heads=1), tensors)
    pipe = janus_core.load(grouped, device="cpu", dtype=torch.float32)
    assert (pipe.model.params.llama.heads, pipe.model.params.llama.kv_heads) == (3, 1)
    full = janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)
    for shared, block in zip(pipe.model.llama.layers, full.model.llama.layers):
        for name in ("k_proj", "v_proj"):
            weight = getattr(shared.self_attn, name).weight
            getattr(block.self_attn, name).weight.data = weight.repeat(3, 1)
    assert torch.equal(pipe.generate_tokens("a", temperature=0), full.generate_tokens("a", temperature=0))


@pytest.mark.parametrize(
    "section,key,value",
    [
        (("language_config",), "num_attention_heads", 4),
        (("language_config",), "num_key_value_heads", 1),
        (("language_config",), "vocab_size", 999),
        (("language_config",), "hidden_size", "96"),
        (("language_config",), "rms_norm_eps", [1]),
        (("language_config",), "rope_scaling", {"type": "linear", "factor": 2}),
        (("vision_config", "params"), "image_size", 384),
        (("vision_config",), "params", "siglip"),
        (("gen_vision_config", "params"), "image_token_size", 16384),
        (("gen_vision_config", "params"), "n_embed", 16),
        ((), "language_config", "llama"),
    ],
)
def test_configs_that_do_not_fit(folder, section, key, value):
    def config(values):
        for name in section:
            values = values[name]
        values[key] = value

    with pytest.raises(CheckpointError, match=key if value != 4 else "fit"):
        build_model(read_checkpoint(folder("ar-a", config)))


def test_defaults_of_a_config(folder, golden):
    """Whatever neither shapes nor config give has the value of the official checkpoints."""
    path = folder("flow-a", lambda c: c.clear() or c.update(language_config={"head_dim": 32}))
    pipe = janus_core.load(path, device="cpu", dtype=torch.float32)
    reference = janus_core.load(golden("flow-a").folder, device="cpu", dtype=torch.float32)
    assert torch.equal(pipe.generate_latents("a", steps=1), reference.generate_latents("a", steps=1))


LLAMA = LlamaParams(640, 256, 512, layers=1, heads=2, kv_heads=2, head_dim=128)
SIGLIP = SiglipParams(width=128, mlp_width=256, layers=1, heads=2, patch_size=16, tokens=16)


def test_default_head_counts_and_constants():
    """An empty config gives the dimensions that the dataclasses document: head_dim 128 and 64, and their defaults."""
    janus = JanusParams(LLAMA, SIGLIP, VQParams(64, 8, 32, (32, 64), base_channels=32))
    tensors = Janus(janus, device="meta").state_dict()
    tensors.update({f"gen_vision_model.{n}": t for n, t in VQModel(janus.vq, device="meta").state_dict().items()})
    assert janus_params(tensors, {}) == janus
    flow = JanusFlowParams(LLAMA, SIGLIP, UViTParams(4, 64, 96, 256, 1, 1, kernel=3, stride=2, padding=1, upsamples=1))
    assert janusflow_params(JanusFlow(flow, device="meta").state_dict(), {}) == flow


def test_global_response_norm_of_small_values():
    """Its epsilon matters only for these."""
    norm = GlobalResponseNorm(2, None, None)
    torch.nn.init.ones_(norm.weight), torch.nn.init.zeros_(norm.bias)
    x = torch.tensor([1e-6, 3e-6]).reshape(1, 1, 1, 2)
    assert torch.allclose(norm(x), x * (1 + x / (2e-6 + 1e-6)), rtol=1e-4, atol=0)


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings(folder):
    def tensors(t):
        for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
            t[name] = t[name][:500].clone()
        return t

    path = folder("ar-a", lambda c: c["language_config"].update(vocab_size=500), tensors)
    with pytest.raises(CheckpointError, match="embeddings"):
        janus_core.load(path, device="cpu")
