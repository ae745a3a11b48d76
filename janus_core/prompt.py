"""From text to token ids: the tokenizer, the chat templates, and the unconditional row.

Source: published behaviour of VLChatProcessor with its `deepseek` and `deepseek_old` conversation templates.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from .errors import CheckpointError, PromptError

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
BEGIN_OF_GENERATION = "<｜begin▁of▁generation｜>"


def _token_text(value, default: str) -> str:
    """A tokenizer_config token, which is a string or a dict with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value or default


@dataclass(frozen=True)
class Question:
    """A question about pictures, as token ids.

    Attributes:
        ids: int64 [L], with one placeholder per picture token.
        replaced: bool [L], where picture embeddings go in order (for JanusFlow begin-of-image too).
    """

    ids: torch.Tensor
    replaced: torch.Tensor


class PromptEncoder:
    """Encodes prompts and questions for one checkpoint.

    Args:
        tokenizer: the text of tokenizer.json. It is used as it stands: going through a Llama tokenizer class loses
            its pre-tokenizer.
        tokenizer_config, processor_config: the dicts of the checkpoint.
        family: "janus" or "janusflow".

    Raises:
        CheckpointError: the tokenizer cannot be read or lacks a token that the family needs.
    """

    def __init__(self, tokenizer: str, tokenizer_config: dict, processor_config: dict, family: str):
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"tokenizer.json cannot be read ({error}).") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.family = family
        self.bos = self._id(_token_text(tokenizer_config.get("bos_token"), BOS))
        self.eos = self._id(_token_text(tokenizer_config.get("eos_token"), EOS))
        self.pad = self._id(PAD)
        self.add_bos = tokenizer_config.get("add_bos_token") is not False
        self.start_text = BEGIN_OF_GENERATION if family == "janusflow" else BEGIN_OF_IMAGE
        self.start = self._id(self.start_text)
        self.placeholder, self.begin, self.end = map(self._id, (IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE))
        plain = (
            family == "janusflow"
            or processor_config.get("sft_format") == "deepseek_old"
            or self.tokenizer.token_to_id("<|User|>") is None
        )
        self.user, self.assistant = ("User", "Assistant") if plain else ("<|User|>", "<|Assistant|>")

    @classmethod
    def of(cls, checkpoint) -> "PromptEncoder":
        """The encoder of a Checkpoint. Raises CheckpointError when the tokenizer has ids that the model has not."""
        encoder = cls(checkpoint.tokenizer, checkpoint.tokenizer_config, checkpoint.processor_config, checkpoint.family)
        largest = max(encoder.tokenizer.get_vocab(with_added_tokens=True).values())
        rows = len(checkpoint.tensors["language_model.model.embed_tokens.weight"])
        if largest >= rows:
            raise CheckpointError(
                f"{checkpoint.path}: tokenizer.json is of another model, it has ids up to {largest} and the model has "
                f"{rows} embeddings."
            )
        return encoder

    def _id(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"tokenizer.json lacks the token {token}: it is of another model.")
        return token_id

    def chat(self, message: str) -> str:
        """The chat text of one message without a system prompt, up to where the answer begins."""
        message = message.strip()
        user = f"{self.user}: {message}\n\n" if message else f"{self.user}:"
        return f"{user}{self.assistant}:"

    def ids(self, text: str) -> torch.Tensor:
        """Token ids of bare text with BOS in front, int64 [L]."""
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeError, TypeError) as error:
            raise PromptError(f"The text cannot be encoded ({error}).") from None
        return torch.tensor([self.bos] * self.add_bos + ids, dtype=torch.long)

    def generation_text(self, prompt: str) -> str:
        """The chat text that asks for a picture of `prompt`, ending with the token that starts generation."""
        return self.chat(prompt) + self.start_text

    def generation_ids(self, prompt: str) -> torch.Tensor:
        """Token ids of `generation_text`, int64 [L]. An empty prompt is allowed."""
        return self.ids(self.generation_text(prompt))

    def unconditional_ids(self, length: int) -> torch.Tensor:
        """The published unconditional row of a prompt with `length` tokens: pads between the first and the last."""
        ids = torch.full((length,), self.pad, dtype=torch.long)
        ids[0], ids[-1] = self.bos, self.start
        return ids

    def question_text(self, question: str, pictures: int = 1) -> str:
        """The chat text of a question about `pictures` pictures.

        Placeholders written in the question are kept where they are; if it has none, they are put in front.

        Raises:
            PromptError: it has some, but not one per picture.
        """
        written = question.count(IMAGE_PLACEHOLDER)
        if written not in (0, pictures):
            raise PromptError(f"The question has {written} {IMAGE_PLACEHOLDER} for {pictures} pictures.")
        if not written:
            question = f"{IMAGE_PLACEHOLDER}\n" * pictures + question
        return f"{SYSTEM_PROMPT}\n\n{self.chat(question)}"

    def question_ids(self, question: str, picture_tokens: int, pictures: int = 1) -> Question:
        """Token ids of `question_text`, each placeholder grown to begin-of-image, `picture_tokens`, end-of-image."""
        ids, replaced = [], []
        for token in self.ids(self.question_text(question, pictures)).tolist():
            if token == self.placeholder:
                ids += [self.begin] + [self.placeholder] * picture_tokens + [self.end]
                replaced += [self.family == "janusflow"] + [True] * picture_tokens + [False]
            else:
                ids.append(token)
                replaced.append(False)
        return Question(torch.tensor(ids, dtype=torch.long), torch.tensor(replaced))

    def decode(self, ids) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def check_context(length: int, max_positions: int):
    """Raises PromptError when a prompt and what will be generated exceed the model's context."""
    if length > max_positions:
        raise PromptError(
            f"The prompt is too long: {length} tokens with the answer, the model has room for {max_positions}."
        )


def question_embeds(model, question: Question, picture_embeds, dtype):
    """Input embeddings of a question.

    Args:
        picture_embeds: what `model.embed_pictures` gave for a batch of B times n pictures, [B * n, tokens, hidden].

    Returns:
        [B, L, hidden].
    """
    hidden = picture_embeds.shape[-1]
    picture_embeds = picture_embeds.reshape(-1, int(question.replaced.sum()), hidden).to(dtype)
    embeds = model.embed_text(question.ids.to(picture_embeds.device), dtype).repeat(picture_embeds.shape[0], 1, 1)
    embeds[:, question.replaced.to(embeds.device)] = picture_embeds
    return embeds
