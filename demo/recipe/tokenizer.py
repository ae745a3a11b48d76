"""The demos' tokenizer: byte-level BPE trained on the task's texts, with the special tokens of the original models."""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from janus_core.prompt import (
    BEGIN_OF_GENERATION,
    BEGIN_OF_IMAGE,
    BOS,
    END_OF_IMAGE,
    EOS,
    IMAGE_PLACEHOLDER,
    PAD,
    SYSTEM_PROMPT,
)

from .scenes import caption, questions, random_scene

ROLES = ("<|User|>", "<|Assistant|>")
SPECIAL = (BOS, EOS, PAD, *ROLES, IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE, BEGIN_OF_GENERATION)
VOCABULARY = 512


def build_tokenizer() -> Tokenizer:
    """Trains the tokenizer, deterministically. Every word of the task becomes one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{P}+"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _texts(scenes: int = 2000):
    rng = random.Random(0)
    for _ in range(scenes):
        scene = random_scene(rng, held_out=None)
        yield f"User: {caption(scene, rng)}\n\nAssistant:"
        for question, answer in questions(scene):
            yield f"{SYSTEM_PROMPT}\n\nUser: \n{question}\n\nAssistant: {answer}"
