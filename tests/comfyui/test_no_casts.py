"""After the first use no weight is cast again: counted in a process that has ComfyUI's modules."""

import pytest


@pytest.mark.parametrize("weight_dtype", ["default", "bf16", "fp32", "fp16", "int8", "fp8_e4m3fn"])
def test_no_weight_is_cast_twice(inside, weight_dtype):
    inside("inside_casts.py", weight_dtype)
