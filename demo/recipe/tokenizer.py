"""The demos' tokenizer: byte-level BPE trained on the task's texts, with the special tokens of the original models.

It reads capitals as small letters.
"""

import random
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from janus_core.finetunes.boxes import BOX_TOKENS
from janus_core.finetunes.reflect import AGAIN, CHECK
from janus_core.finetunes.think import RECIPES
from janus_core.prompt import (
    BEGIN_OF_GENERATION,
    BEGIN_OF_IMAGE,
    BOS,
    END_OF_IMAGE,
    EOS,
    IMAGE_PLACEHOLDER,
    PAD,
    ROLES,
    SYSTEM_PROMPT,
)

from . import words
from .captions import JUNK, caption, meaning
from .plans import plan_of
from .questions import questions
from .scene_data import mixed_scene
from .tasks import check_of, distinct_scene, edit_of, reason_of

SPECIAL = (BOS, EOS, PAD, *ROLES["<|User|>"], IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE, BEGIN_OF_GENERATION)
VOCABULARY = 1408


def build_tokenizer() -> Tokenizer:
    """Trains the tokenizer, deterministically, once per process. Every word of the task becomes one token."""
    return Tokenizer.from_str(_trained())


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
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
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in BOX_TOKENS])
    return tokenizer.to_str()


def _texts(scenes: int = 1500):
    """Texts of the task, with every word often enough to become a token."""
    rng = random.Random(0)
    lists = (
        words.FILLERS,
        words.FRAMES,
        words.BACKGROUNDS,
        words.ABSENT,
        words.ROWS,
        words.COLUMNS,
        JUNK,
        *words.PLACE_WORDS.values(),
        *words.RELATION_WORDS.values(),
    )
    for _ in range(20):
        yield from (recipe.system_prompt + recipe.template for recipe in RECIPES.values())
        yield from (f"a {word}" for part in lists for word in part)
    for k in range(scenes):
        scene = mixed_scene(rng, held_out=None)
        says = caption(scene, rng)
        yield f"User: {says.text}\n\nAssistant: {meaning(scene, says)}"
        for question, answer in questions(scene, rng):
            yield f"{SYSTEM_PROMPT}\n\nUser: \n{question}\n\nAssistant: {answer}"
        if k % 4 == 0:
            scene = distinct_scene(rng)
            yield edit_of(scene, rng).instruction
            yield from (plan_of(scene, recipe) for recipe in RECIPES)
            yield reason_of(check_of(scene, rng)) + CHECK.removeprefix(END_OF_IMAGE) + AGAIN.removeprefix(EOS)
