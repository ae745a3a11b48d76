"""Wrong types and values in edit, think and reflect, each refused in one sentence; odd plans are read."""

import pytest
from PIL import Image

from janus_core.errors import CheckpointError, JanusError
from janus_core.finetunes.boxes import boxes_of
from janus_core.image import cropped_pixels
from janus_core.prompt import PromptEncoder
from tests.fuzz import finetunes, settings
from tests.refusals import one_sentence

IMAGE = Image.new("RGB", (20, 9))
DOORS = {
    "edit": (finetunes.EDIT, {"image": IMAGE, "prompt": "a"}),
    "think": (finetunes.THINK, {"prompt": "a", "recipe": "reasongen-r1", "max_new_tokens": 2}),
    "reflect": (finetunes.REFLECT, {"image": IMAGE, "prompt": "a", "max_new_tokens": 2}),
    "generate_until_match": (finetunes.ROUNDS, {"prompt": "a", "rounds": 0}),
}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return settings.pipeline("janus", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("door,name", [(door, name) for door, (table, _) in DOORS.items() for name in table])
def test_a_value_is_refused(pipe, door, name):
    table, good = DOORS[door]
    for value in table[name][1]:
        with one_sentence():
            made = getattr(pipe, door)(**{**good, name: value})
            list(made) if door == "generate_until_match" else None


def test_a_prompt_that_holds_special_tokens_is_a_prompt(pipe):
    for prompt in finetunes.PROMPTS:
        assert len(pipe.edit(IMAGE, prompt)) == 1
        assert pipe.think(prompt, "reasongen-r1", max_new_tokens=2).prompt.embeds.isfinite().all()


def test_numbers_of_thousands_of_digits_in_a_plan():
    digits = "9" * 5000
    plan = f"<|box_start|>({digits},1),(2,3)<|box_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    assert [box["width"] for box in boxes_of(plan, 1000)] == [2]


def test_a_narrow_image_is_not_scaled_to_gigabytes():
    with pytest.raises(JanusError, match="1x4000, too narrow"):
        cropped_pixels(Image.new("RGB", (1, 4000)), 384)


@pytest.mark.parametrize("call", [lambda e: e.find("a"), lambda e: e.with_tokens(["a"], 10), lambda e: e.decode([1])])
def test_a_panic_of_the_tokenizer_is_one_sentence(call):
    """pyo3's PanicException is not an Exception."""

    class Panic(BaseException):
        pass

    class Tokenizer:
        def __getattr__(self, name):
            def panic(*args, **kwargs):
                raise Panic("called `Option::unwrap()` on a `None` value")

            return panic

    encoder = PromptEncoder.__new__(PromptEncoder)
    encoder.tokenizer = Tokenizer()
    with pytest.raises(CheckpointError, match="tokenizer.json cannot"):
        call(encoder)
