"""The memory of each weight format, counted without weights."""

import pytest

pytest.importorskip("transformers")
from benchmarks import ROOT, memory_table  # noqa: E402
from janus_core.checkpoint.quantize import DECODER_LAYERS  # noqa: E402


def test_7b_in_4_bits_generates_with_less_than_5_gb_of_weights():
    found = memory_table.counted("ar", "7b", "int4")
    assert 3.5e9 < found["weights"] < 5e9, found


def test_the_counted_int4_layer_is_the_packed_one():
    """4.5 bits per weight, 4 bytes per channel and a codebook; layers of other widths have 8 bits."""
    name = DECODER_LAYERS + "0.mlp.up_proj.weight"
    four, eight = (
        sum(t.nbytes for t in memory_table.weight_tensors(name, (64, inputs), "int4")) for inputs in (512, 96)
    )
    assert four == 64 * 512 * 9 // 16 + 4 * 64 + 64 and eight == 64 * 96 + 4 * 64


def test_the_documented_memory_is_the_counted_one():
    assert memory_table.table() in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
