"""A LoRA written for ComfyUI and for peft is the same in janus_core and in PeftModel."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from converted import make_converted
from safetensors.torch import load_file

import janus_core
from janus_core.checkpoint import build_model, read_checkpoint, save_lora, with_loras
from janus_core.cli import main

peft = pytest.importorskip("peft")

TARGETS = r"language_model\.model\.layers\.\d+\..*\.(q_proj|o_proj|down_proj)"
ALPHA, RANK, TOLERANCE = 6, 3, 1e-4


def model_with_lora(checkpoint):
    """A model with a LoRA whose numbers are random and fit bfloat16."""
    model = build_model(checkpoint, dtype=torch.float32)
    peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS), model)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = (0.2 * torch.randn(parameter.shape, generator=generator)).to(torch.bfloat16).float()
    return model


@torch.no_grad()
def logits_of(model, ids):
    return model.text_logits(model.llama(model.embed_text(ids, torch.float32)))


def adapted(model, folder, **settings):
    """PeftModel.from_pretrained, which warns where the files lack a layer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        return peft.PeftModel.from_pretrained(model, str(folder), **settings)


@pytest.fixture(scope="module")
def written(golden, tmp_path_factory):
    """(transformers' model, its folder, the LoRA's folder, ids, logits of the model that has the LoRA)."""
    folder = tmp_path_factory.mktemp("written")
    theirs = make_converted(folder / "model", golden("ar-a").folder)
    checkpoint = read_checkpoint(folder / "model")
    trained = model_with_lora(checkpoint)
    assert save_lora(trained, checkpoint, folder / "out") == folder / "out" / "lora.safetensors"
    ids = torch.randint(0, 640, (2, 20), generator=torch.Generator().manual_seed(1))
    return theirs, folder / "model", folder / "out", ids, logits_of(trained, ids)


def test_janus_core_and_peft_agree(written, tmp_path):
    theirs, model, lora, ids, expected = written
    before = logits_of(janus_core.load(model, device="cpu").model, ids)
    assert not torch.allclose(before, expected, atol=0.1)
    for path in (lora / "lora.safetensors", lora / "peft", lora / "peft" / "adapter_model.safetensors"):
        loaded = janus_core.load(model, device="cpu", loras=path).model
        assert torch.allclose(logits_of(loaded, ids), expected, atol=TOLERANCE)
    merged = tmp_path / "merged.safetensors"
    assert main(["convert", str(model), str(merged), "--lora", str(lora / "peft")]) == 0
    assert torch.allclose(logits_of(janus_core.load(merged, device="cpu").model, ids), expected, atol=TOLERANCE)

    own = build_model(read_checkpoint(model), dtype=torch.float32)
    own = adapted(own, lora / "peft", key_mapping={r"^model\.language_model\.": "language_model.model."})
    assert torch.allclose(logits_of(own.get_base_model(), ids), expected, atol=TOLERANCE)
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, before, atol=TOLERANCE)
        tuned = adapted(theirs, lora / "peft")
        assert torch.allclose(tuned(input_ids=ids).logits, expected, atol=TOLERANCE)
        assert torch.allclose(tuned.merge_and_unload()(input_ids=ids).logits, expected, atol=TOLERANCE)


def test_the_files(written):
    _, _, folder, _, _ = written
    comfyui = load_file(folder / "lora.safetensors")
    pairs = load_file(folder / "peft" / "adapter_model.safetensors")
    assert {tensor.item() for name, tensor in comfyui.items() if name.endswith(".alpha")} == {ALPHA}
    matrices = {name: tensor for name, tensor in comfyui.items() if not name.endswith(".alpha")}
    assert len(matrices) == len(pairs) == 2 * 3 * 2
    for name, tensor in matrices.items():
        assert tensor.dtype == torch.bfloat16
        name = name.replace("diffusion_model.language_model.model.", "base_model.model.model.language_model.")
        assert torch.equal(pairs[name], tensor)
    config = json.loads((folder / "peft" / "adapter_config.json").read_text())
    assert config["r"] == RANK and config["lora_alpha"] == ALPHA


def test_janusflow(golden, tmp_path):
    """transformers has no JanusFlow: peft loads its LoRA into janus_core's model."""
    checkpoint = read_checkpoint(golden("flow-a").folder)
    trained = model_with_lora(checkpoint)
    save_lora(trained, checkpoint, tmp_path)
    ids = torch.arange(20)[None]
    expected = logits_of(trained, ids)
    own = adapted(build_model(checkpoint, dtype=torch.float32), tmp_path / "peft").get_base_model()
    assert torch.allclose(logits_of(own, ids), expected, atol=TOLERANCE)
    wide = replace(checkpoint, tensors={name: tensor.float() for name, tensor in checkpoint.tensors.items()})
    for path in (tmp_path / "lora.safetensors", tmp_path / "peft"):
        loaded = build_model(with_loras(wide, path))
        assert torch.allclose(logits_of(loaded, ids), expected, atol=TOLERANCE)


def test_a_lora_that_peft_saved(golden, tmp_path):
    """Of transformers' own model, whose vision tower has layers of the same names."""
    theirs = make_converted(tmp_path / "model", golden("ar-a").folder)
    settings = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True, "alpha_pattern": {"v_proj": 2}}
    tuned = peft.get_peft_model(theirs, peft.LoraConfig(target_modules=["q_proj", "v_proj", "fc1"], **settings))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(tmp_path / "lora")
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert any("vision_model" in name for name in names) and any(".aligner." in name for name in names)
    ours = janus_core.load(tmp_path / "model", device="cpu", loras=[tmp_path / "lora"])
    pixels = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    ids = torch.arange(20)[None]
    with torch.no_grad():
        features = tuned.get_base_model().model.get_image_features(pixels)
        features = getattr(features, "pooler_output", features)  # transformers 4 gives the tensor itself
        assert torch.allclose(ours.model.embed_images(pixels), features, atol=TOLERANCE)
        assert torch.allclose(logits_of(ours.model, ids), tuned(input_ids=ids).logits, atol=TOLERANCE)
