"""Questions about images: preprocessing, batches, several images, and odd input."""

import numpy as np
import pytest
import torch
from PIL import Image

import janus_core
from janus_core.errors import ImageError, PromptError, SamplingError
from janus_core.image import array_to_image, open_image, to_images, to_pixels, understanding_pixels


@pytest.fixture(scope="module", params=["ar-a", "flow-a"])
def pipe(request, golden):
    pipe = janus_core.load(golden(request.param).folder, device="cpu", dtype=torch.float32)
    pipe.example = open_image(golden(request.param).folder / "picture.png")
    return pipe


def test_a_batch_answers_as_single_images_do(pipe):
    other = Image.new("RGB", (50, 80), (200, 30, 60))
    both = pipe.describe([pipe.example, other], "What?", max_new_tokens=8)
    assert both == [pipe.describe(p, "What?", max_new_tokens=8)[0] for p in (pipe.example, other)]


def test_several_images_in_one_question(pipe):
    other = Image.new("RGB", (96, 96), (0, 255, 0))
    (one,) = pipe.describe([[pipe.example, other]], "Which is greener?", max_new_tokens=6)
    (swapped,) = pipe.describe([[other, pipe.example]], "Which is greener?", max_new_tokens=6)
    assert one != swapped
    placed = "<image_placeholder> is the first.\n<image_placeholder> is the second."
    assert len(pipe.describe([[pipe.example, other]], placed, max_new_tokens=2)) == 1
    with pytest.raises(PromptError, match="placeholder"):
        pipe.describe(pipe.example, placed)
    with pytest.raises(ImageError):
        pipe.describe([[pipe.example], [pipe.example, other]], "?")
    with pytest.raises(ImageError):
        pipe.describe([], "?")


def test_sampled_answers_repeat_with_their_seed(pipe):
    def ask(seed):
        return pipe.describe(pipe.example, "What?", max_new_tokens=12, temperature=1.0, top_p=1.0, seed=seed)

    assert ask(1) == ask(1) and ask(1) != ask(2)


def test_an_answer_stops_at_the_end_of_sentence(pipe):
    """With a head that only writes end-of-sentence the answer is empty and the run ends after one token."""
    head, seen = pipe.model.language_model.lm_head, []

    def only_eos(module, inputs, logits):
        logits = torch.zeros_like(logits)
        logits[..., pipe.prompts.eos] = 1
        return logits

    hook = head.register_forward_hook(only_eos)
    answer = pipe.describe(pipe.example, "?", max_new_tokens=9, callback=lambda done, total: seen.append(done))
    hook.remove()
    assert answer == [""] and seen == [1]


def test_preprocessing_of_any_shape():
    for size in ((1, 1), (1, 500), (500, 1), (37, 53), (96, 96), (1000, 20)):
        pixels = understanding_pixels(Image.new("RGB", size, (255, 0, 0)), 96)
        assert pixels.shape == (3, 96, 96) and pixels.min() >= -1 and pixels.max() <= 1
    wide = understanding_pixels(Image.new("RGB", (100, 50), (255, 0, 0)), 96)
    grey = 127 / 127.5 - 1
    assert torch.allclose(wide[:, 0], torch.tensor(grey)) and torch.allclose(wide[0, 48], torch.tensor(1.0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(mode, tmp_path):
    assert to_pixels(Image.new(mode, (8, 8))).shape == (3, 8, 8)


def test_transparency_becomes_white():
    assert to_pixels(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).min() == 1


def test_arrays_of_one_three_and_four_channels():
    for channels in (1, 3, 4):
        assert array_to_image(torch.ones(5, 4, channels)).size == (4, 5)
    for shape in ((5, 4, 2), (0, 4, 3), (5, 4)):
        with pytest.raises(ImageError):
            array_to_image(torch.ones(shape))


def test_eight_bit_images_survive_the_float_convention():
    values = torch.arange(256, dtype=torch.float32).reshape(16, 16, 1).repeat(1, 1, 3) / 255
    assert np.array_equal(np.array(array_to_image(values))[..., 0].flatten(), np.arange(256))
    pixels = to_pixels(array_to_image(values))
    assert np.array_equal(np.array(to_images(pixels[None])[0])[..., 0].flatten(), np.arange(256))


def test_unreadable_files(tmp_path):
    with pytest.raises(ImageError, match="no file"):
        open_image(tmp_path / "nowhere.png")
    (tmp_path / "x.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path / "x.png")


def test_settings_out_of_range(pipe):
    for setting in ({"max_new_tokens": 0}, {"max_new_tokens": 4097}, {"temperature": 9}, {"top_p": -1}, {"seed": -1}):
        with pytest.raises(SamplingError, match=next(iter(setting))):
            pipe.describe(pipe.example, "?", **setting)


def test_a_question_longer_than_the_context(pipe):
    with pytest.raises(PromptError, match="too long"):
        pipe.describe(pipe.example, "word " * 5000)


def test_questions_ask_for_a_form_of_answer():
    from janus_core.questions import question_for

    assert question_for("What is it?") == "What is it?"
    assert question_for("Is it red?", "word") == "\nIs it red?\nAnswer the question using a single word or phrase."
    assert question_for("What is it?", "letter", ["a cat", "a dog"]) == (
        "What is it?\nA. a cat\nB. a dog\nAnswer with the option's letter from the given choices directly."
    )
    for bad in (("letter", []), ("word", ["a"]), ("poem", []), ("letter", ["x"] * 27)):
        with pytest.raises(janus_core.PromptError):
            question_for("What is it?", *bad)
