"""Fine-tuning data: folders, metadata, repeats, the order of examples, the cache on disk and worker processes."""

import json
import logging
import multiprocessing
import os
import random
import time

import pytest
import torch
from core.training_models import tiny
from PIL import Image

from janus_core.errors import ImageError, TrainingError
from janus_core.image import cropped_pixels, open_image, understanding_pixels
from janus_core.prompt import PromptEncoder
from janus_core.training import batches
from janus_core.training.encoded import EncodedImages, fingerprint
from janus_core.training.folder_batches import FolderBatches, Mixture, Order
from janus_core.training.folder_data import Example, cut_texts, read_folder
from janus_core.training.loop import train
from janus_core.training.settings import LoopSettings
from janus_core.training.streaming import stream, worker_errors

SIZE = 16


def write_image(path, seed=0, size=(20, 30), caption=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def test_sub_folders_and_repeats(tmp_path):
    write_image(tmp_path / "a.png", caption="a")
    write_image(tmp_path / "10_style" / "b.png", caption="b")
    write_image(tmp_path / "10_style" / "deep" / "c.png", caption="c")
    write_image(tmp_path / "0_off" / "d.png", caption="d")
    write_image(tmp_path / ".hidden" / "e.png", caption="e")
    found = {one.caption: one.repeats for one in read_folder(tmp_path)}
    assert found == {"a": 1, "b": 10, "c": 10}


def test_metadata_has_captions_and_questions(tmp_path):
    write_image(tmp_path / "a.png", caption="from the text file")
    write_image(tmp_path / "sub" / "b.png")
    lines = [
        {"image": "a.png", "question": "What is it?", "answer": "noise"},
        {"image": "sub/b.png", "caption": "second", "question": "Which colours?", "answer": "many"},
        {"image": "a.png", "question": "Is it a cat?", "answer": "No"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    a, b = read_folder(tmp_path)
    assert a.caption == "from the text file"
    assert a.questions == (("What is it?", "noise"), ("Is it a cat?", "No"))
    assert b.caption == "second" and b.questions == (("Which colours?", "many"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.png", "question": "?"}', "a question without an answer"),
        ('{"caption": "x"}', "lacks the setting 'image'"),
        ('{"image": "b.png", "caption": "x"}', "names 'b.png', which is not a file"),
        ('{"image": "a.png", "text": "x"}', "no setting 'text'"),
        ("[1]", "must hold a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_metadata_is_refused_with_its_line(tmp_path, line, message):
    write_image(tmp_path / "a.png", caption="a")
    (tmp_path / "metadata.jsonl").write_text('{"image": "a.png", "caption": "x"}\n' + line)
    with pytest.raises(ImageError, match="line 2") as error:
        read_folder(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["sub/a.gif", "../a.png", ".hidden/a.png"])
def test_metadata_of_an_image_that_is_not_trained_on_is_refused(tmp_path, name):
    folder = tmp_path / "images"
    for path in ("b.png", name):
        write_image(folder / path, caption="b")
    (folder / "metadata.jsonl").write_text(json.dumps({"image": name, "caption": "x"}))
    with pytest.raises(ImageError, match=f"names '{name}', which is not an image of that folder"):
        read_folder(folder)


def test_metadata_may_name_images_in_other_ways(tmp_path):
    write_image(tmp_path / "sub" / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"image": "./sub/../sub/a.png", "caption": "x"}')
    assert [one.caption for one in read_folder(tmp_path)] == ["x"]


def test_an_epoch_has_every_example_as_often_as_it_repeats():
    order = Order("abbb", "seed")
    epochs = ["".join(order[8 * k + j] for j in range(8)) for k in range(5)]
    assert all(sorted(epoch) == sorted("abbbabbb") for epoch in epochs)
    assert len(set(epochs)) > 1, "shuffled"
    assert order[3] == Order("abbb", "seed")[3]


def test_prior_images_have_their_share_of_the_rows(tmp_path):
    own = [Example(tmp_path / f"{k}", "own") for k in range(3)]
    prior = [Example(tmp_path / f"p{k}", "prior") for k in range(5)]
    mixture = Mixture(own, prior, 0.25, "seed")
    texts = [mixture[row].caption for row in range(400)]
    assert texts.count("prior") == 100
    shown = [mixture[row].path for row in range(400) if mixture[row].caption == "prior"]
    assert all(shown.count(one.path) == 20 for one in prior), "each as often as the others"
    assert {Mixture(own, [], 0.25, "seed")[row].caption for row in range(20)} == {"own"}


def test_texts_that_are_too_long_are_cut_with_a_warning(tmp_path, caplog):
    prompts = PromptEncoder.of(tiny("janus")[2])
    examples = [Example(tmp_path, "a red circle on a blue background", (("What?", "a red circle on a red square"),))]
    assert cut_texts(examples, prompts, 50) == examples and not caplog.records
    with caplog.at_level(logging.WARNING):
        (cut,) = cut_texts(examples, prompts, 4)
    assert len(prompts.ids(cut.caption, bos=False)) <= 4 and examples[0].caption.startswith(cut.caption)
    assert len(prompts.ids(cut.questions[0][1], bos=False)) <= 4
    assert "2 captions or answers have over 4 tokens" in caplog.text


def encoded(tmp_path, encoder="one", calls=None, size=SIZE, parts=("understanding", "generation", "codes")):
    def encode(pixels):
        if calls is not None:
            calls.append(pixels.shape)
        return pixels.mean(1).flatten(1) * len(encoder)

    return EncodedImages(tmp_path / "cache", size, encode, encoder, parts)


def test_images_are_prepared_as_inference_does_and_encoded_once(tmp_path):
    path, calls = write_image(tmp_path / "a.png"), []
    example = [Example(path, "a")]
    images = encoded(tmp_path, calls=calls)
    images.prepare([path])
    opened = open_image(path)
    understanding, cropped = understanding_pixels(opened, SIZE), cropped_pixels(opened, SIZE)
    assert torch.allclose(images.stacked(example, "understanding")[0], understanding, atol=1e-6)
    assert torch.allclose(images.stacked(example, "generation")[0], cropped, atol=1e-6)
    assert torch.allclose(images.stacked(example, "codes")[0], cropped.mean(0).flatten() * 3)
    encoded(tmp_path, calls=calls).prepare([path])
    assert len(calls) == 1


@pytest.mark.parametrize("change", ["image", "encoder", "size", "parts", "damage"])
def test_the_cache_is_never_stale(tmp_path, change):
    path, calls = write_image(tmp_path / "a.png"), []
    first = encoded(tmp_path, calls=calls)
    first.prepare([path])
    changes = {"encoder": {"encoder": "other"}, "size": {"size": 32}, "parts": {"parts": ("codes",)}}.get(change, {})
    if change == "image":
        write_image(path, seed=1)
    if change == "damage":
        first.files[path].write_bytes(first.files[path].read_bytes()[:100])
    again = encoded(tmp_path, calls=calls, **changes)
    again.prepare([path])
    assert len(calls) == 2
    assert again.stacked([Example(path, "a")], "codes").isfinite().all()


def test_processes_share_the_encoding(tmp_path):
    paths = [write_image(tmp_path / f"{k}.png", seed=k) for k in range(5)]
    done = []
    for rank in (0, 1):
        calls = []
        encoded(tmp_path / "x", calls=calls).prepare(paths, rank, 2)
        done.append(len(calls))
    assert done == [3, 2]


def test_fingerprints_differ_with_any_value():
    tensors = {"a": torch.zeros(10), "b": torch.ones(3, dtype=torch.bfloat16)}
    changed = {**tensors, "b": torch.tensor([1, 1, 1.0078125], dtype=torch.bfloat16)}
    assert fingerprint(tensors) == fingerprint(dict(reversed(tensors.items()))) != fingerprint(changed)


@pytest.fixture
def folder_batches(tmp_path):
    prompts = PromptEncoder.of(tiny("janus")[2])
    paths = [write_image(tmp_path / f"{k}.png", seed=k) for k in range(3)]
    images = encoded(tmp_path)
    images.prepare(paths)
    examples = [Example(path, f"number {k}", (("Which?", f"{k}"),)) for k, path in enumerate(paths)]

    def make(**options):
        return FolderBatches(prompts, examples, images, SIZE**2, 4, (2, 3), 0, **options)

    return make


def test_worker_processes_prepare_the_same_batches_in_order(folder_batches):
    batch_at, indices = folder_batches(), range(1, 12, 2)
    seen = []
    streamed = list(stream(batch_at, indices, 2, seen.append))
    assert seen == list(indices) and len(streamed) == len(indices)
    for index, batch in zip(indices, streamed):
        expected = batch_at(index)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def damaged(index):
    raise ImageError("a.png is damaged.")


def fails(index):
    raise RuntimeError("stack expects each tensor to be equal size")


def dies(index):
    os._exit(1)


def test_an_error_in_a_worker_process_is_one_sentence():
    with pytest.raises(ImageError, match=r"^a\.png is damaged\.$"):
        list(stream(damaged, range(3), 1))
    with pytest.raises(TrainingError, match="set loop.workers to 0"), worker_errors():
        list(stream(dies, range(3), 1))
    with pytest.raises(RuntimeError, match="equal size"), worker_errors():
        list(stream(fails, range(3), 1))


def a_batch(index):
    return {"x": torch.ones(1)}


def test_a_worker_process_that_is_killed_during_a_step_is_one_sentence(tmp_path):
    class Objective(torch.nn.Linear):
        def forward(self, batch):
            for process in multiprocessing.active_children():
                process.kill()
            time.sleep(10)  # in which torch raises

    settings = LoopSettings(steps=3, lr=1e-3, precision="no", workers=1)
    with pytest.raises(TrainingError, match="set loop.workers to 0"):
        train(Objective(1, 1), a_batch, settings, tmp_path)


def test_what_is_left_out_is_not_checked(tmp_path):
    write_image(tmp_path / "a.png", caption="a")
    for name in ("b.png", "b.jpg"):  # would share a caption file
        write_image(tmp_path / "0_off" / name)
    (tmp_path / "0_off" / "b.txt").write_bytes(b"\xff\xfe\xff")
    assert [one.caption for one in read_folder(tmp_path)] == ["a"]


def test_caption_dropout_is_a_setting(folder_batches):
    shares = []
    for dropout in (0.0, 0.5, 1.0):
        batch_at = folder_batches(dropout=dropout)
        shares.append(torch.cat([batch_at(k)["gen_smoothing"] for k in range(60)]).float().mean().item())
    assert shares[0] == 0 and 0.35 < shares[1] < 0.65 and shares[2] == 1


def test_rows_ask_both_questions_and_for_captions(folder_batches):
    batch_at = folder_batches()
    prompts = batch_at.prompts
    answers = set()
    for index in range(20):
        labels = batch_at(index)["und_labels"]
        answers |= {prompts.decode(row[row != batches.IGNORED]).strip() for row in labels}
    assert {"0", "1", "2"} < answers and any(answer.startswith("number") for answer in answers)
