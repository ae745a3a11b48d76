"""Batch runs: the same bytes whatever the shards, interruptions and engine; resume, failures, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_proofs import files_of
from PIL import Image
from sdxl_layout import write_sdxl_vae

import janus_core
from janus_core.batch.outputs import image_seed
from janus_core.batch.records import content_hash
from janus_core.cli import main

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a red circle on a blue background", "a cat", "a green square", "a dog left of a cat", "an orange cross"]


@pytest.fixture
def model(golden):
    return golden("ar-a").folder


@pytest.fixture
def jobs(tmp_path):
    path = tmp_path / "jobs.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def run(jobs, model, out, *more, task="generate", status=0):
    command = ["batch", task, str(jobs), "--model", str(model), "--out", str(out), "--dtype", "fp32", "--device", "cpu"]
    assert main([*command, "--seed", "3", *map(str, more)]) == status


def summary(out: Path, name="summary.json") -> dict:
    return json.loads((out.with_name(f"{out.name}.run") / name).read_text())


def pixels(data: Path):
    return np.asarray(Image.open(data)).astype(int)


def test_shards_give_the_bytes_of_one_run(jobs, model, tmp_path):
    run(jobs, model, tmp_path / "one", "--batch-size", 2, "--count", 2)
    for k in range(3):
        run(jobs, model, tmp_path / "shards", "--batch-size", 2, "--count", 2, "--shard", f"{k}/3")
    expected = files_of(tmp_path / "one")
    assert len(expected) == 10 and files_of(tmp_path / "shards") == expected
    assert sum(summary(tmp_path / "shards", f"summary-{k}-of-3.json")["done"] for k in range(3)) == 10
    assert not list((tmp_path / "shards.run" / "tmp").iterdir())


def test_a_resumed_run_gives_the_bytes_of_one_run(jobs, model, tmp_path):
    run(jobs, model, tmp_path / "one", "--batch-size", 4)
    expected = files_of(tmp_path / "one")
    (tmp_path / "one" / "000001.png").unlink()
    (tmp_path / "one" / "000004.png").unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    run(jobs, model, tmp_path / "one")
    assert files_of(tmp_path / "one") == expected
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    found = summary(tmp_path / "one")
    assert (found["done"], found["skipped"], found["batch_size"]) == (2, 3, 4)


def test_an_image_is_that_of_its_seed_at_any_batch_size(jobs, model, tmp_path):
    for size in (1, 3, 5):
        run(jobs, model, tmp_path / str(size), "--batch-size", size)
    pipe = janus_core.load(model, device="cpu", dtype=torch.float32)
    for k, prompt in enumerate(PROMPTS):
        seed = image_seed(3, f"{k:06}", 0)
        tokens = pipe.generate_tokens(prompt, seed=seed)
        batch = pipe.generate_tokens([prompt, "a cat"], seeds=[seed, 1])
        assert torch.equal(tokens[0], batch[0])
        expected = np.asarray(pipe.decode_tokens(tokens)[0]).astype(int)
        for size in (1, 3, 5):
            assert abs(pixels(tmp_path / str(size) / f"{k:06}.png") - expected).max() <= 1


def test_flow_batches_prompts_of_different_lengths(golden, jobs, tmp_path):
    vae = tmp_path / "vae.safetensors"
    write_sdxl_vae(vae)
    common = ("--vae", vae, "--steps", 2, "--size", "64x96")
    run(jobs, golden("flow-a").folder, tmp_path / "one", "--batch-size", 5, *common)
    run(jobs, golden("flow-a").folder, tmp_path / "two", "--batch-size", 1, *common)
    for name in files_of(tmp_path / "one"):
        assert abs(pixels(tmp_path / "one" / name) - pixels(tmp_path / "two" / name)).max() <= 1


def test_flow_prompts_do_not_depend_on_their_batch(golden):
    pipe = janus_core.load(golden("flow-a").folder, device="cpu", dtype=torch.float32)
    seeds = [image_seed(0, "x", k) for k in range(len(PROMPTS))]
    batch = pipe.generate_latents(PROMPTS, seeds=seeds, steps=3, negative_prompt="a red dog")
    single = [pipe.generate_latents(p, seed=s, steps=3, negative_prompt="a red dog") for p, s in zip(PROMPTS, seeds)]
    assert torch.allclose(batch, torch.cat(single), atol=1e-4)
    for bad in ([1], [1, 2, 3, 4, -1], "12345"):
        with pytest.raises(janus_core.SamplingError, match="seeds"):
            pipe.generate_latents(PROMPTS, seeds=bad, steps=1)


def test_dpg_writes_grids_and_nothing_else(model, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for k, text in enumerate(PROMPTS[:2]):
        (prompts / f"p{k}.txt").write_text(text)
    command = ["batch", "dpg", "--prompts", str(prompts), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main([*command, "--dtype", "fp32", "--batch-size", "3", "--contact-sheet"]) == 0
    assert sorted(files_of(tmp_path / "out")) == ["p0.png", "p1.png"]
    pipe = janus_core.load(model, device="cpu", dtype=torch.float32)
    grid = Image.open(tmp_path / "out" / "p1.png")
    assert grid.size == (192, 192)
    for k, (x, y) in enumerate([(0, 0), (96, 0), (0, 96), (96, 96)]):  # the scorer's crops
        (expected,) = pipe(PROMPTS[1], seed=image_seed(0, "p1", k))
        crop = np.asarray(grid.crop((x, y, x + 96, y + 96))).astype(int)
        assert abs(crop - np.asarray(expected)).max() <= 1
    page = (tmp_path / "out.run" / "contact_sheet.html").read_text()
    assert page.count("<img") == 2 and PROMPTS[0] in page


def test_geneval_on_disk(model, tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    lines = [json.dumps({"tag": "colors", "include": [], "prompt": prompt}) for prompt in PROMPTS[:2]]
    path.write_text("\n".join(lines))
    out = tmp_path / "out"
    command = ["batch", "geneval", "--prompts", str(path), "--model", str(model), "--out", str(out), "--samples", "2"]
    assert main([*command, "--batch-size", "4"]) == 0
    names = ["metadata.jsonl", "samples/0000.png", "samples/0001.png"]
    assert sorted(files_of(out)) == [f"{folder}/{name}" for folder in ("00000", "00001") for name in names]
    assert json.loads((out / "00001" / "metadata.jsonl").read_text())["prompt"] == PROMPTS[1]


def test_describe_writes_captions_and_reports_what_cannot_be_read(golden, tmp_path, capsys):
    golden = golden("ar-a")
    images = tmp_path / "images"
    images.mkdir()
    for k in range(3):
        Image.open(golden.folder / "picture.png").rotate(90 * k).save(images / f"{k}.png")
    (images / "bad.png").write_bytes(b"not an image")
    more = ["--question", golden.text["und.question"], "--max-new-tokens", 12, "--batch-size", 4]
    run(images, golden.folder, images, *more, task="describe", status=1)
    assert "bad failed" in capsys.readouterr().err
    found = summary(images)
    assert (found["done"], found["failed"]) == (3, 1) and "bad.png" in found["failures"][0]["error"]
    pipe = janus_core.load(golden.folder, device="cpu", dtype=torch.float32)
    for k in range(3):
        image = Image.open(images / f"{k}.png")
        (expected,) = pipe.describe(image, golden.text["und.question"], max_new_tokens=12)
        assert (images / f"{k}.txt").read_text() == expected.strip()
    (images / "bad.png").unlink()
    run(images, golden.folder, images, *more, task="describe")
    assert summary(images)["skipped"] == 3


def test_an_answer_about_a_replaced_image_disagrees(golden, tmp_path, capsys):
    golden = golden("ar-a")
    images, jobs, out = tmp_path / "images", tmp_path / "jobs.jsonl", tmp_path / "out"
    images.mkdir()
    picture = Image.open(golden.folder / "picture.png")
    for k in range(2):
        picture.save(images / f"{k}.png")
    jobs.write_text("\n".join(json.dumps({"id": f"{k}", "image": f"images/{k}.png"}) for k in range(2)))
    more = ["--question", golden.text["und.question"], "--max-new-tokens", 2, "--batch-size", 2]
    run(jobs, golden.folder, out, *more, task="describe")
    os.utime(images / "0.png", (0, 0))  # a copy is no other image
    run(jobs, golden.folder, out, *more, task="describe")
    assert summary(out)["skipped"] == 2
    picture.rotate(30).save(images / "1.png")
    assert (images / "1.png").stat().st_size != (images / "0.png").stat().st_size
    run(jobs, golden.folder, out, *more, task="describe", status=1)
    assert "1.txt is there, but it was made with another images/1.png:" in capsys.readouterr().err
    run(jobs, golden.folder, out, *more, "--overwrite", task="describe")
    assert (summary(out)["done"], summary(out)["skipped"]) == (1, 1)
    (images / "0.png").unlink()  # nothing is known about an image that is gone
    run(jobs, golden.folder, out, *more, task="describe")
    record = tmp_path / "out.run" / "outputs" / "1.txt.json"
    values = json.loads(record.read_text())
    assert values.pop("image_bytes") == {"images/1.png": (images / "1.png").stat().st_size}
    record.write_text(json.dumps(values))  # as it was before sizes were recorded
    picture.save(images / "1.png")
    run(jobs, golden.folder, out, *more, task="describe")
    assert summary(out)["skipped"] == 2


def test_a_job_that_fails_leaves_the_others(model, tmp_path, capsys):
    jobs = tmp_path / "jobs.jsonl"
    rows = [{"id": "good", "prompt": "a cat"}, {"id": "long", "prompt": "cat " * 5000}, {"id": "also", "prompt": "a"}]
    jobs.write_text("\n".join(map(json.dumps, rows)))
    run(jobs, model, tmp_path / "out", "--batch-size", 3, status=1)
    assert sorted(files_of(tmp_path / "out")) == ["also.png", "good.png"]
    (failure,) = summary(tmp_path / "out")["failures"]
    assert failure["job"] == "long" and "too long" in failure["error"]
    assert "1 outputs failed" in capsys.readouterr().err
    jobs.write_text("\n".join(map(json.dumps, rows[::2])))
    run(jobs, model, tmp_path / "out")


def test_outputs_made_in_another_way_are_an_error_unless_overwritten(jobs, model, tmp_path, capsys):
    out = tmp_path / "out"
    run(jobs, model, out, "--batch-size", 5)
    first = files_of(out)
    run(jobs, model, out, "--cfg", 3, status=1)
    assert "other settings" in capsys.readouterr().err and files_of(out) == first
    run(jobs, model, out, "--cfg", 3, "--overwrite")
    second = files_of(out)
    assert summary(out)["done"] == 5 and not set(first.values()) & set(second.values())
    (tmp_path / "out.run" / "outputs" / "000000.png.json").unlink()
    run(jobs, model, out, "--cfg", 3, status=1)
    assert "no record" in capsys.readouterr().err


def test_another_checkpoint_disagrees(jobs, model, tmp_path, capsys):
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model.iterdir():
        if path.suffix in (".json", ".safetensors") and "expected" not in path.name:
            (copy / path.name).write_bytes(path.read_bytes())
    run(jobs, copy, tmp_path / "out", "--limit", 1)
    same = content_hash(copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert content_hash(copy) != same
    run(jobs, copy, tmp_path / "out", "--limit", 1, status=1)
    assert "another checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--batch-size", "0"], ["--steps", "3"], ["--count", "0"], ["--limit", "0"]])
def test_bad_options_are_one_sentence(jobs, model, tmp_path, capsys, more):
    run(jobs, model, tmp_path / "out", *more, status=1)
    assert capsys.readouterr().err.count("\n") == 1 and not files_of(tmp_path / "out")


@pytest.fixture(scope="module")
def whole_run(golden, tmp_path_factory):
    """The files of a run that nothing stopped: 25 images in batches of 2."""
    folder = tmp_path_factory.mktemp("whole")
    jobs = folder / "jobs.txt"
    jobs.write_text("\n".join(PROMPTS) + "\n")
    run(jobs, golden("ar-a").folder, folder / "out", "--batch-size", 2, "--count", 5)
    return files_of(folder / "out")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_whole_files_and_is_resumed(jobs, model, tmp_path, whole_run, number):
    """What is there after the signal is whole, and the second run adds exactly the rest."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "janus_core", "batch", "generate", str(jobs), "--model", str(model)]
    command += ["--out", str(out), "--dtype", "fp32", "--device", "cpu", "--batch-size", "2", "--count", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--seed", "3"], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    while not any(out.glob("*.png")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    before = files_of(out)
    assert 0 < len(before) < 25 and all(data.endswith(b"IEND\xaeB`\x82") for data in before.values())
    if number != signal.SIGKILL:
        assert summary(out)["interrupted"] and summary(out)["done"] == len(before)
    run(jobs, model, out, "--count", 5)
    assert files_of(out) == whole_run and before.items() <= files_of(out).items()


def test_the_batch_size_is_found_from_memory_and_recorded(jobs, model, tmp_path, monkeypatch):
    from janus_core.batch import memory

    pipe = janus_core.load(model, device="cpu", dtype=torch.float32)
    one = memory.bytes_per_image(pipe)
    for images, expected in ((0, 1), (1.5, 1), (2.5, 2), (5, 4), (1000, memory.LARGEST["cpu"])):
        free = (memory.DECODER_BYTES + images * one) / memory.SHARE
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert memory.batch_size_for(pipe) == expected
    run(jobs, model, tmp_path / "out", "--limit", 1)
    assert json.loads((tmp_path / "out.run" / "run.json").read_text()) == {"batch_size": memory.LARGEST["cpu"]}
    monkeypatch.undo()
    monkeypatch.setattr(type(pipe), "patch_size", 8)  # of 12 x 12 tokens instead of 6 x 6
    assert memory.bytes_per_image(pipe) / one == pytest.approx((144 + 128) / (36 + 128), rel=0.1)
    monkeypatch.undo()
    assert memory.free_memory(torch.device("cpu")) > 2**20
