"""From text to token ids: the tokenizer, the chat templates, and the unconditional row.

Source: the original VLChatProcessor with its `deepseek` and `deepseek_old` conversation templates.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from .errors import CheckpointError, PromptError, library_errors
from .schema import FLAG, Text, check

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
BEGIN_OF_GENERATION = "<｜begin▁of▁generation｜>"
ROLES = {"<|User|>": ("<|User|>", "<|Assistant|>"), "User": ("User", "Assistant")}
Messages = Sequence[Mapping[str, str]]  # {"role": "user" or "assistant", "content": text}, the user's first and last


def _token_text(value, default: str) -> str:
    """A tokenizer_config token, which is a string or a dict with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    check("tokenizer_config.json: a special token", value or default, Text(), CheckpointError)
    return value or default


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the language model reads it.

    Attributes:
        ids: int64 [L].
        visible: bool [L], False where attention does not see a token; a hidden token keeps its position.
    """

    ids: torch.Tensor
    visible: torch.Tensor


def all_visible(ids: torch.Tensor) -> PromptTokens:
    """PromptTokens of ids [L] that attention sees."""
    return PromptTokens(ids, torch.ones(len(ids), dtype=torch.bool))


@dataclass(frozen=True)
class Question:
    """A question about images, as token ids.

    Attributes:
        ids: int64 [L], with one placeholder per image token.
        is_image: bool [L], where image embeddings go, in order (for JanusFlow begin-of-image too).
    """

    ids: torch.Tensor
    is_image: torch.Tensor


def unconditional_row(family: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The unconditional row beside a conditional one of `length` tokens, as the original generate() builds it.

    Janus: begin-of-sentence, pads, and the token that starts generation; all of them are visible.
    JanusFlow: begin-of-sentence and hidden pads.

    Returns:
        (int64 [length], indices into (bos, pad, start); bool [length], which of them are visible).
    """
    BOS_INDEX, PAD_INDEX, START_INDEX = range(3)
    row = torch.full((length,), PAD_INDEX)
    row[0] = BOS_INDEX
    visible = torch.ones(length, dtype=torch.bool)
    if family == "janusflow":
        visible[1:] = False
    else:
        row[-1] = START_INDEX
    return row, visible


class PromptEncoder:
    """Encodes prompts and questions for one checkpoint.

    Args:
        tokenizer: the text of tokenizer.json. It is used as is: a Llama tokenizer class would lose its
            pre-tokenizer.
        tokenizer_config, processor_config: the dicts of the checkpoint.
        family: "janus" or "janusflow".

    Raises:
        CheckpointError: the tokenizer cannot be read or lacks a token that the family needs.
    """

    def __init__(self, tokenizer: str, tokenizer_config: dict, processor_config: dict, family: str):
        with library_errors(CheckpointError, "tokenizer.json cannot be read, download it again"):
            self.tokenizer = Tokenizer.from_str(tokenizer)
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
        self.family = family
        self.bos = self._id(_token_text(tokenizer_config.get("bos_token"), BOS))
        self.eos = self._id(_token_text(tokenizer_config.get("eos_token"), EOS))
        self.pad = self._id(PAD)
        self.add_bos = tokenizer_config.get("add_bos_token")
        if self.add_bos is None:
            self.add_bos = True
        check("tokenizer_config.json: add_bos_token", self.add_bos, FLAG, CheckpointError)
        self.start_text = BEGIN_OF_GENERATION if family == "janusflow" else BEGIN_OF_IMAGE
        self.start = self._id(self.start_text)
        self.placeholder, self.begin, self.end = map(self._id, (IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE))
        plain_roles = (
            family == "janusflow"
            or processor_config.get("sft_format") == "deepseek_old"
            or self.find("<|User|>") is None
        )
        self.user, self.assistant = ROLES["User" if plain_roles else "<|User|>"]
        for token in (self.start_text, IMAGE_PLACEHOLDER):
            if self._encode(token, CheckpointError) != [self._id(token)]:
                raise CheckpointError(f"tokenizer.json does not read {token} as one token: download it again.")

    @classmethod
    def of(cls, checkpoint) -> "PromptEncoder":
        """The encoder of a Checkpoint. Raises CheckpointError when the tokenizer has ids that the model lacks."""
        encoder = cls(checkpoint.tokenizer, checkpoint.tokenizer_config, checkpoint.processor_config, checkpoint.family)
        with library_errors(CheckpointError, "tokenizer.json cannot be used"):
            largest = max(encoder.tokenizer.get_vocab(with_added_tokens=True).values())
        rows = len(checkpoint.weight("language_model.model.embed_tokens.weight"))
        if largest >= rows:
            raise CheckpointError(
                f"{checkpoint.path}: tokenizer.json belongs to another model: it has ids up to {largest}, the model "
                f"has {rows} embeddings."
            )
        return encoder

    def find(self, token: str) -> int | None:
        """The id of a token, None if the tokenizer lacks it."""
        with library_errors(CheckpointError, "tokenizer.json cannot be used"):
            return self.tokenizer.token_to_id(token)

    def _id(self, token: str) -> int:
        token_id = self.find(token)
        if token_id is None:
            raise CheckpointError(f"tokenizer.json lacks the token {token}: it belongs to another model.")
        return token_id

    def chat(self, message: str | Messages, *, roles: str = "auto", system_prompt: str = "") -> str:
        """The chat text of a message or a conversation, up to where the answer begins.

        Args:
            message: the user's message; or messages, where one with the role "system" may come first.
            roles: "auto" for the checkpoint's own, or a key of ROLES.
            system_prompt: text in front of the conversation; a system message takes its place.

        Raises:
            PromptError: there are no such roles, or the messages do not alternate from user to user.
        """
        if roles not in ("auto", *ROLES):
            raise PromptError(f"There are no roles {roles}, only auto, {' and '.join(ROLES)}.")
        user, assistant = (self.user, self.assistant) if roles == "auto" else ROLES[roles]
        system, turns = _turns(message)
        system_prompt = system_prompt if system is None else system
        text = f"{system_prompt}\n\n" if system_prompt else ""
        for k, content in enumerate(turns):
            role, end = ((user, "\n\n"), (assistant, EOS))[k % 2]
            text += f"{role}: {content}{end}" if content else f"{role}:"
        return f"{text}{assistant}:".strip()

    def with_tokens(self, tokens: Sequence[str], vocab_size: int) -> "PromptEncoder":
        """An encoder whose tokenizer has the tokens: this one, or a copy to which the missing ones are added.

        Raises:
            PromptError: the model has no embeddings for them.
        """
        missing = [token for token in tokens if self.find(token) is None]
        if not missing:
            return self
        encoder = copy.copy(self)
        with library_errors(CheckpointError, "tokenizer.json cannot be extended"):
            encoder.tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
            encoder.tokenizer.add_tokens(missing)
        if max(map(encoder._id, missing)) >= vocab_size:
            raise PromptError(
                f"This checkpoint lacks the tokens {' '.join(missing)}, and its model has no embeddings for them: use "
                "one that was trained with them."
            )
        return encoder

    def ids(self, text: str, bos: bool = True) -> torch.Tensor:
        """Token ids of bare text, int64 [L], with BOS in front if the checkpoint wants it there and `bos` is true."""
        return torch.tensor([self.bos] * (bos and self.add_bos) + self._encode(text, PromptError), dtype=torch.long)

    def _encode(self, text: str, error) -> list[int]:
        with library_errors(error, "tokenizer.json cannot encode the text"):
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    @property
    def special_ids(self) -> torch.Tensor:
        """Ids of begin-of-sentence, pad, and the token that starts generation: int64 [3]."""
        return torch.tensor([self.bos, self.pad, self.start])

    def generation_text(self, prompt: str, **chat) -> str:
        """The chat text that asks for an image of `prompt`, ending with the token that starts generation.

        Here and below, `chat` stands for the arguments roles and system_prompt of `chat`.
        """
        return self.chat(prompt, **chat) + self.start_text

    def generation_ids(self, prompt: str, **chat) -> torch.Tensor:
        """Token ids of `generation_text`, int64 [L]. An empty prompt is allowed."""
        return self.ids(self.generation_text(prompt, **chat))

    def model_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """The generation ids that the language model reads: JanusFlow's time embedding replaces the last one."""
        return ids[:-1] if self.family == "janusflow" else ids

    def conditional(self, prompt: str, **chat) -> PromptTokens:
        """The row of a prompt, or of a negative prompt that is not empty."""
        return all_visible(self.model_ids(self.generation_ids(prompt, **chat)))

    def unconditional(self, length: int) -> PromptTokens:
        """The unconditional row beside a conditional one of `length` tokens (see unconditional_row)."""
        row, visible = unconditional_row(self.family, length)
        return PromptTokens(self.special_ids[row], visible)

    def guidance_rows(self, prompt: str, negative_prompt: str = "", **chat) -> tuple[PromptTokens, PromptTokens]:
        """The conditional row, and the row that guidance moves away from: of the negative prompt, or unconditional."""
        cond = self.conditional(prompt, **chat)
        check("The negative prompt", negative_prompt, Text(empty=True), PromptError)
        if negative_prompt.strip():
            return cond, self.conditional(negative_prompt, **chat)
        return cond, self.unconditional(len(cond.ids))

    def question_text(self, question: str | Messages, images: int = 1, **chat) -> str:
        """The chat text of a question about `images` images, or of a conversation that ends with one.

        Placeholders written in it stay where they are; without any, they are put in front of the first message. The
        system prompt is SYSTEM_PROMPT unless `chat` has another.

        Raises:
            PromptError: there are placeholders, but not one per image; or see `chat`.
        """
        messages = _messages(question)
        system, turns = _turns(messages)
        written = sum(turn.count(IMAGE_PLACEHOLDER) for turn in turns)
        if written not in (0, images):
            raise PromptError(f"The question has {written} {IMAGE_PLACEHOLDER} for {images} images.")
        if not written:
            first = 0 if system is None else 1
            content = f"{IMAGE_PLACEHOLDER}\n" * images + messages[first]["content"]
            messages[first] = {**messages[first], "content": content}
        return self.chat(messages, **{"system_prompt": SYSTEM_PROMPT, **chat})

    def question_ids(self, question: str | Messages, image_tokens: int, images: int = 1, **chat) -> Question:
        """Token ids of `question_text`, each placeholder expanded to begin-of-image, `image_tokens`, end-of-image."""
        ids, is_image = [], []
        for token in self.ids(self.question_text(question, images, **chat)).tolist():
            if token == self.placeholder:
                ids += [self.begin] + [self.placeholder] * image_tokens + [self.end]
                is_image += [self.family == "janusflow"] + [True] * image_tokens + [False]
            else:
                ids.append(token)
                is_image.append(False)
        return Question(torch.tensor(ids, dtype=torch.long), torch.tensor(is_image))

    def decode(self, ids, special_tokens: bool = False) -> str:
        """Text of token ids, special tokens left out unless `special_tokens` is true."""
        with library_errors(CheckpointError, "tokenizer.json cannot decode the answer"):
            return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=not special_tokens)


def _messages(message: str | Messages) -> list:
    """A conversation as a list; a text is one message of the user."""
    if isinstance(message, (list, tuple)):
        return list(message)
    check("The prompt", message, Text(empty=True), PromptError)
    return [{"role": "user", "content": message}]


def _turns(message: str | Messages) -> tuple[str | None, list[str]]:
    """The system message, if there is one, and the stripped contents of the others: of the user, assistant, user, …"""
    messages = _messages(message)
    try:
        roles = [one["role"] for one in messages]
        contents = [one["content"].strip() for one in messages]
    except (TypeError, KeyError, AttributeError):
        raise PromptError("Every message of a conversation needs a role and a content, both text.") from None
    system = None
    if roles[:1] == ["system"]:
        system, roles, contents = contents[0], roles[1:], contents[1:]
    if roles != (["user", "assistant"] * len(roles))[: len(roles)] or len(roles) % 2 == 0:
        raise PromptError("A conversation must alternate between user and assistant, and start and end with the user.")
    return system, contents


def check_context(length: int, max_positions: int, image_tokens: int = 0):
    """Raises PromptError when a prompt and what will be generated exceed the model's context.

    Args:
        length: of both together.
        image_tokens: how many of them are an image to generate.
    """
    if length > max_positions and image_tokens > max_positions // 2:
        raise PromptError(
            f"The image is too large: its {image_tokens} tokens and the {length - image_tokens} of the prompt exceed "
            f"the model's {max_positions} positions."
        )
    if length > max_positions:
        raise PromptError(
            f"The prompt is too long: {length} tokens with the answer, the model has room for {max_positions}."
        )
