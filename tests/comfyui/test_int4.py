"""Weights of 4 bits, which need comfy-kitchen: ComfyUI's own Python has it."""

import pytest

CHECKS = [
    "the_layout_is_comfyuis",
    "a_file_is_written_and_read",
    "the_loader_samples_with_them",
    "they_are_refused_where_they_cannot_run",
]


@pytest.mark.parametrize("check", CHECKS)
def test_int4_inside_comfyui(inside, check):
    inside("inside_int4.py", check)
