"""benchmarks/batch.py on a few images: each part's runs and what the report says of them."""

import argparse

import pytest

from benchmarks import batch


def arguments(golden, *parts, size=None) -> argparse.Namespace:
    counts = {"images": 4, "repeats": 2, "ray_images": 8, "ray_repeats": 1, "batch_size": 2}
    return argparse.Namespace(model=golden("ar-a").folder, device="cpu", parts=parts, size=size, **counts)


def test_the_parts_in_one_process(golden):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    text = batch.measure(arguments(golden, "server", "batch", "runner"))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert {row[0].removeprefix("| ") for row in rows} == {batch.SINGLE, batch.SAMPLER, batch.RUNNER, batch.SERVER}
    assert all(row[1] == "4" and len(row[2].split(", ")) == 2 and float(row[3].rstrip(" |")) > 0 for row in rows)
    for words in ("A batch of 2 gives", "The runner takes", "The server has", "with 1 thread,"):
        assert words in text, words


def test_a_part_alone_runs_only_what_it_compares(golden, monkeypatch):
    sizes, decode = [], batch.janus_core.JanusPipeline.decode_tokens

    def noting_size(pipe, tokens, size=None):
        sizes.append(size)
        return decode(pipe, tokens, size)

    monkeypatch.setattr(batch.janus_core.JanusPipeline, "decode_tokens", noting_size)
    text = batch.measure(arguments(golden, "batch", size=(64, 32)))
    assert set(sizes) == {(64, 32)} and "batch size 2, 64x32 pixels;" in text
    assert text.count("| 4 |") == 2 and batch.RUNNER + " |" not in text and "threads each" not in text


def test_ratios_are_of_medians():
    seconds = {batch.SINGLE: [8, 90, 8], batch.SAMPLER: [4, 4, 1], batch.RUNNER: [5, 5, 50], batch.SERVER: [10, 10, 1]}
    assert batch.ratios(seconds, [0.02, 0.01, 0.5], 8) == [
        "A batch of 8 gives 2.00 times the images of 1.",
        "The runner takes +25.0 % against the sampler; 2.0 % of its time is not sampling.",
        "The server has 50 % of the runner's throughput.",
    ]
    processes, rates = {batch.SHARDS: [60, 100], batch.ON_RAY: [100, 100]}, {batch.SHARDS: [6.3], batch.ON_RAY: [6.0]}
    waits = {batch.SHARDS: [5.0], batch.ON_RAY: [20.0]}
    assert batch.ray_ratios(processes, rates, waits) == [
        "From start to end, Ray takes +25 % against the shards, +5 % once the first batch is done.",
        "The first batch was done after 5.0 s with shards and 20.0 s with Ray.",
    ]
