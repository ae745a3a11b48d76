"""Chat texts: roles, system prompts, and conversations with images."""

import pytest
import torch
from PIL import Image

import janus_core
from janus_core.errors import PromptError
from janus_core.prompt import EOS, IMAGE_PLACEHOLDER, SYSTEM_PROMPT

ASKED = [
    {"role": "user", "content": "What is this? "},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "What colour?"},
]


@pytest.fixture(scope="module", params=["ar-a", "flow-a"])
def pipe(request, golden):
    return janus_core.load(golden(request.param).folder, device="cpu", dtype=torch.float32)


def test_roles_and_system_prompt(pipe):
    prompts = pipe.prompts
    assert prompts.chat("a", roles="User", system_prompt="Be brief.") == "Be brief.\n\nUser: a\n\nAssistant:"
    assert prompts.chat("a", roles="<|User|>") == "<|User|>: a\n\n<|Assistant|>:"
    assert prompts.chat("a") == f"{prompts.user}: a\n\n{prompts.assistant}:"
    assert prompts.generation_text("a", roles="User") == f"User: a\n\nAssistant:{prompts.start_text}"
    plain = prompts.question_text("a", 0)
    assert plain.startswith(f"{SYSTEM_PROMPT}\n\n{prompts.user}: a")
    assert prompts.question_text("a", 0, system_prompt="", roles="User") == "User: a\n\nAssistant:"
    cond, uncond = prompts.guidance_rows("a", "b", roles="User", system_prompt="Be brief.")
    for row, text in ((cond, "a"), (uncond, "b")):
        ids = prompts.ids(f"Be brief.\n\nUser: {text}\n\nAssistant:{prompts.start_text}")
        assert torch.equal(row.ids, prompts.model_ids(ids))


def test_a_conversation(pipe):
    """Messages are stripped; the assistant's end with end-of-sentence, and a system message replaces the prompt."""
    user, assistant = pipe.prompts.user, pipe.prompts.assistant
    turns = f"{user}: What is this?\n\n{assistant}: A cat.{EOS}{user}: What colour?\n\n{assistant}:"
    assert pipe.prompts.chat(ASKED) == turns
    system = [{"role": "system", "content": "Be brief."}]
    assert pipe.prompts.chat([*system, *ASKED], system_prompt="other") == f"Be brief.\n\n{turns}"
    image = f"{IMAGE_PLACEHOLDER}\n"
    assert (
        pipe.prompts.question_text([*system, *ASKED], 2)
        == f"Be brief.\n\n{turns.replace('What is', image * 2 + 'What is')}"
    )
    assert ASKED[0]["content"] == "What is this? ", "the messages are as they were"


def test_images_in_a_conversation(pipe):
    one, other = (Image.new("RGB", (96, 96), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    placed = [
        {**ASKED[0], "content": f"{IMAGE_PLACEHOLDER} What?"},
        ASKED[1],
        {**ASKED[2], "content": f"And {IMAGE_PLACEHOLDER}?"},
    ]
    a, b = (pipe.describe([pair], placed, max_new_tokens=6)[0] for pair in ([one, other], [other, one]))
    assert a != b
    first = pipe.describe(one, ASKED, max_new_tokens=6)
    written = [{**ASKED[0], "content": f"{IMAGE_PLACEHOLDER}\nWhat is this?"}, *ASKED[1:]]
    assert pipe.describe(one, written, max_new_tokens=6) == first
    assert len(pipe.describe(None, ASKED, max_new_tokens=2)) == 1
    with pytest.raises(PromptError, match="placeholder"):
        pipe.describe(one, placed)
    assert pipe.describe(one, "What?", roles="User", system_prompt="", max_new_tokens=6) != pipe.describe(
        one, "What?", max_new_tokens=6
    )


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ASKED[:2],
        [ASKED[1]],
        [*ASKED, ASKED[0]],
        [{"role": "system", "content": "Be brief."}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
        ["What?"],
    ],
)
def test_conversations_that_cannot_be_continued(pipe, messages):
    with pytest.raises(PromptError, match="onversation"):
        pipe.prompts.chat(messages)
    with pytest.raises(PromptError, match="onversation"):
        pipe.prompts.question_text(messages)


def test_unknown_roles(pipe):
    with pytest.raises(PromptError, match="no roles Human"):
        pipe.describe(Image.new("RGB", (8, 8)), "?", roles="Human")
