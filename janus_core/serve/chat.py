"""/v1/chat/completions: what a request asks for, and the answers to it."""

import json
import secrets
import time

from ..errors import JanusError
from ..prompt import IMAGE_PLACEHOLDER, ROLES
from ..sampling.settings import MAX_NEW_TOKENS
from ..schema import FLAG, Items, Number, OneOf, Section, Text, Whole
from .errors import RequestRefused
from .fields import check_names, field, image_of_uri, seed_of, short_text
from .work import Answer, AnswerWanted

KNOWN = (
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "stream",
    "n",
    "roles",
)
IGNORED = ("user", "stream_options", "metadata", "store", "service_tier")
ABSENT = ("frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "logit_bias", "tools", "tool_choice")
MOST_MESSAGES, MOST_IMAGES = 256, 32


def answer_wanted(values: dict, default_system_prompt: str, default_roles: str, most_bytes: int) -> AnswerWanted:
    """What a body asks for.

    Args:
        default_system_prompt: where the conversation has no system message.
        most_bytes: of an image.

    Raises:
        RequestRefused.
    """
    check_names(values, KNOWN, (*IGNORED, "response_format"), ABSENT)
    field(values, "n", OneOf((1,)))
    form = field(values, "response_format", Section(), {})
    if form.get("type", "text") != "text":
        raise RequestRefused("response_format must be of the type text.", param="response_format")
    images = []
    messages = values.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_MESSAGES:
        raise RequestRefused(f"messages must be a list of 1 to {MOST_MESSAGES}.", param="messages")
    messages = tuple(_message(message, images, most_bytes) for message in messages)
    short_text("".join(message["content"] for message in messages), "messages")
    limit = Whole(1, 2**31)
    tokens = field(values, "max_completion_tokens", limit) or field(values, "max_tokens", limit, 512)
    settings = {
        "max_new_tokens": min(tokens, MAX_NEW_TOKENS),
        "temperature": field(values, "temperature", Number(0, 5), 0.0),
        "top_p": field(values, "top_p", Number(0, 1), 0.95),
        "top_k": field(values, "top_k", Whole(0, 2**31), 0),
    }
    stop = values.get("stop")
    stop = field({"stop": [stop] if isinstance(stop, str) else stop}, "stop", Items(Text(), 0, 16), [])
    roles = field(values, "roles", OneOf(("auto", *ROLES)), default_roles)
    chat = {"roles": roles, "system_prompt": default_system_prompt}
    return AnswerWanted(messages, tuple(images), seed_of(values), settings, chat, tuple(stop))


def _message(message, images: list, most_bytes: int) -> dict:
    """A message as PromptEncoder.chat takes it; its images are appended to `images`."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "developer", "user", "assistant"):
        raise RequestRefused("A message needs a role: system, user or assistant.", param="messages")
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise RequestRefused("The content of a message must be a text or a list of parts.", param="messages")
    text = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and Text(empty=True).problem(part.get("text")) is None:
            if IMAGE_PLACEHOLDER in part["text"]:
                raise RequestRefused(f"A text may not contain {IMAGE_PLACEHOLDER}.", param="messages")
            text += part["text"]
        elif kind == "image_url" and role == "user":
            if len(images) == MOST_IMAGES:
                raise RequestRefused(f"There are over {MOST_IMAGES} images.", param="messages")
            address = part.get("image_url")
            address = address.get("url") if isinstance(address, dict) else address
            images.append(image_of_uri(address, f"Image {len(images) + 1}", most_bytes))
            text += f"{IMAGE_PLACEHOLDER}\n"
        else:
            raise RequestRefused("A part must be a text, or of a user an image_url.", param="messages")
    return {"role": role, "content": text}


def check_wanted(wanted: AnswerWanted, pipe):
    """Refuses a conversation that cannot be encoded or does not fit, before it waits. Raises RequestRefused."""
    try:
        tokens = pipe.prompts.question_ids(
            list(wanted.messages), pipe.model.params.siglip.tokens, len(wanted.images), **wanted.chat
        )
    except JanusError as error:
        raise RequestRefused(str(error), param="messages") from None
    most = pipe.model.params.llama.max_positions
    if len(tokens.ids) >= most:
        raise RequestRefused(
            f"The conversation has {len(tokens.ids)} tokens, the model has room for {most}.",
            param="messages",
            code="context_length_exceeded",
        )


def wants_stream(values: dict) -> tuple[bool, bool]:
    """(whether to stream, whether to send the usage at the end)."""
    options = field(values, "stream_options", Section(), {})
    return field(values, "stream", FLAG, False), bool(options.get("include_usage"))


def completion(model: str, answer: Answer) -> dict:
    """The body of an answer."""
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": answer.reason, "logprobs": None}
    return {**_head(model, "chat.completion"), "choices": [choice], "usage": _usage(answer)}


class Chunks:
    """The events of a streamed answer."""

    def __init__(self, model: str):
        self.head, self.sent = _head(model, "chat.completion.chunk"), ""

    def first(self) -> str:
        return self._event({"role": "assistant", "content": ""})

    def more(self, text: str) -> str:
        """What is new in the text so far."""
        if not text.startswith(self.sent) or len(text) == len(self.sent):
            return ""
        new, self.sent = text[len(self.sent) :], text
        return self._event({"content": new})

    def last(self, answer: Answer, usage: bool) -> str:
        end = f"data: {json.dumps({**self.head, 'choices': [], 'usage': _usage(answer)})}\n\n" if usage else ""
        return f"{self.more(answer.text)}{self._event({}, answer.reason)}{end}data: [DONE]\n\n"

    def _event(self, delta: dict, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps({**self.head, 'choices': [choice]})}\n\n"


def _head(model: str, kind: str) -> dict:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def _usage(answer: Answer) -> dict:
    total = answer.prompt_tokens + answer.tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens, "total_tokens": total}
