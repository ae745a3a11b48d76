"""Checks of files, messages and switches that need ComfyUI's modules in the process.

test_messages.py runs this file with ComfyUI's Python and folder, and the name of one check.
"""

import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

from load_pack import PACK  # isort: split

import comfy.cli_args
import folder_paths
import torch
from comfy.hooks import HookGroup, WeightHook
from pack.janus_core.errors import PromptError
from pack.nodes import folders, ignored, loader_nodes, token_prompts
from pack.nodes.clip import make_clip

from janus_core.checkpoint import read_checkpoint

GOLDENS = PACK / "tests" / "data" / "goldens"


def models_janus_is_created():
    """Also where the models folder itself is missing; a folder that cannot be created does not stop ComfyUI."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(folder_paths.folder_names_and_paths):
        models = Path(folder) / "models"
        with mock.patch.object(folder_paths, "models_dir", str(models)):
            folders.register()
            assert (models / "janus").is_dir()
        Path(folder, "file").touch()
        with mock.patch.object(folder_paths, "models_dir", str(Path(folder) / "file")):
            folders.register()


def hooks_are_refused():
    """On either prompt of Janus Token Sampler; a group without hooks is not."""
    checkpoint = read_checkpoint(GOLDENS / "ar-a")
    model = loader_nodes.make_patcher(checkpoint, "fp32")
    clip = make_clip(model, checkpoint)
    plain, hooked = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a cat", "a dog"))
    network = model.model.diffusion_model
    hooked[0][1]["hooks"] = HookGroup()
    assert token_prompts.read_prompts(plain, hooked, 1, network)
    hooked[0][1]["hooks"].add(WeightHook())
    for pair in ((plain, hooked), (hooked, plain)):
        try:
            token_prompts.read_prompts(*pair, 1, network)
        except PromptError as error:
            assert "hook" in str(error) and "Load LoRA" in str(error)
        else:
            raise AssertionError("hooks were accepted")


def every_setting_without_effect_is_named():
    """Of a conditioning every key that is not ours; of a MODEL options, patches and wrappers; nothing of ours."""
    checkpoint = read_checkpoint(GOLDENS / "ar-a")
    model = loader_nodes.make_patcher(checkpoint, "fp32").clone()
    clip = make_clip(model, checkpoint)
    ((_, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))
    assert ignored.of_conditioning(extra) == [] and ignored.of_model(model) == []
    extra |= {"strength": 0.5, "control": object(), "gligen": (), "area": None, "set_area_to_bounds": False}
    assert ignored.of_conditioning(extra) == ["strength", "control", "gligen"]
    model.set_model_attn1_patch(lambda *args: None)
    model.add_object_patch("model_sampling", object())
    model.set_model_sampler_cfg_function(lambda cond, uncond, scale: cond)
    named = ignored.of_model(model)
    assert "sampler_cfg_function" in named and "model_sampling" in named
    assert [name for name in named if "patches" in name] == ["every_setting_without_effect_is_named (patches)"]


def unet_switches_change_nothing():
    """The weights' dtype and the arithmetic's are those of weight_dtype, whatever --…-unet or --…-text-enc says."""

    def dtypes(name):
        network = loader_nodes.make_patcher(read_checkpoint(GOLDENS / name), "bf16").model
        return [weight.dtype for weight in network.diffusion_model.parameters()], network.get_dtype_inference()

    switches = [name for name in vars(comfy.cli_args.args) if name.endswith(("_unet", "_text_enc"))]
    assert len(switches) >= 10
    for name in ("ar-a", "flow-a"):
        expected = dtypes(name)
        for switch in switches:
            with mock.patch.object(comfy.cli_args.args, switch, True):
                assert dtypes(name) == expected, switch


def every_searched_folder_is_named():
    """Those that do not exist are marked."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(folder_paths.folder_names_and_paths):
        elsewhere = os.path.join(folder, "elsewhere")
        folder_paths.add_model_folder_path("janus", elsewhere)
        try:
            folders.path_of("mine")
        except folders.CheckpointError as error:
            message = str(error)
        places = [str(path) for _, path in folders.roots()]
        assert len(places) >= 3 and all(place in message for place in places)
        assert f"{elsewhere} (does not exist)" in message
        assert message.startswith("Choose another one, or download an official one (janus-pro-1b,")


with torch.inference_mode():
    globals()[sys.argv[1]]()
