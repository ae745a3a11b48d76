"""What a CPU server does not show, checked in a process that has ComfyUI's modules."""

import pytest

CHECKS = [
    "layers_without_weights_load_a_checkpoint",
    "captured_steps_give_the_same_latents",
    "nothing_is_captured_unless_turned_on",
    "a_model_that_fits_is_loaded_as_a_whole",
    "the_dynamic_loader_is_told_what_comes_first",
    "a_model_that_does_not_fit_is_warned_of",
    "a_reloaded_model_has_its_vae",
    "weights_quantised_on_a_cpu_are_memory_mapped",
]


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(inside, check):
    inside("inside.py", check)
