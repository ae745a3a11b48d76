"""Rows of a training batch: prompts and questions as token ids, padded at the end."""

import random

import torch

from ..prompt import PromptEncoder
from .unified import IGNORED, PADDING

DROPOUT = 0.1  # share of the rows that are trained without a prompt, for guidance


def pad_rows(rows, value):
    """Pads 1-D tensors of any lengths at the end with `value`: [B, longest]."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def answer_rows(prompts: PromptEncoder, asked, image_tokens: int) -> dict:
    """Questions about one image per row, with their answers and the end of sentence.

    The questions of a row share the image in front of them and do not attend to one another: each has the positions
    and the attention that it would have alone, and the image is encoded once for all.

    Args:
        asked: of each row a list of (question, answer).

    Returns:
        und_ids, und_is_image, und_labels, und_learnt, und_segments (see unified.Objective).
    """
    fill = {"und_ids": prompts.pad, "und_is_image": False, "und_labels": IGNORED, "und_segments": PADDING}
    rows = []
    for pairs in asked:
        parts = []
        for number, (text, answer) in enumerate(pairs, start=1):
            question = prompts.question_ids(text, image_tokens)
            ids, labels = _with_answer(prompts, question.ids, answer)
            is_image = torch.zeros(len(ids), dtype=torch.bool)
            is_image[: len(question.ids)] = question.is_image
            shared = int((question.ids == prompts.end).nonzero().max()) + 1  # up to the end of the image
            segments = torch.full_like(ids, number)
            segments[:shared] = 0
            start = 0 if number == 1 else shared
            parts.append([values[start:] for values in (ids, is_image, labels, segments)])
        rows.append([torch.cat(values) for values in zip(*parts)])
    padded = {name: pad_rows(values, fill[name]) for name, values in zip(fill, zip(*rows))}
    return {**padded, "und_learnt": learnt_positions(padded["und_labels"])}


def text_rows(prompts: PromptEncoder, pairs) -> dict:
    """Questions without an image and their answers: text_ids, text_labels, text_learnt."""
    rows = [_with_answer(prompts, prompts.ids(prompts.chat(question)), answer) for question, answer in pairs]
    labels = pad_rows((labels for _, labels in rows), IGNORED)
    return {
        "text_ids": pad_rows((ids for ids, _ in rows), prompts.pad),
        "text_labels": labels,
        "text_learnt": learnt_positions(labels),
    }


def learnt_positions(labels):
    """The positions of labels [B, L], counted through all rows, whose next token has a label: int64 [n]."""
    learnt = torch.zeros_like(labels, dtype=torch.bool)
    learnt[:, :-1] = labels[:, 1:] != IGNORED
    return learnt.flatten().nonzero().squeeze(1)


def _with_answer(prompts, question, answer):
    """(ids, labels) of question ids and an answer; only the answer has labels."""
    answer = torch.cat((prompts.ids(" " + answer.strip(), bos=False), torch.tensor([prompts.eos])))
    return torch.cat((question, answer)), torch.cat((torch.full_like(question, IGNORED), answer))


def generation_rows(
    prompts: PromptEncoder, captions, codes, image_tokens: int, rng: random.Random, dropout: float = DROPOUT
) -> dict:
    """Prompts followed by the positions of an image; some prompts are replaced by the unconditional row.

    Args:
        codes: of each image the VQ tokens [B, N], or for JanusFlow the scaled latents [B, 4, H, W].
        image_tokens: positions of an image, without JanusFlow's time embedding.
        dropout: share of the prompts that are replaced.

    Returns:
        gen_ids, gen_is_image, gen_places, gen_visible, gen_smoothing, and gen_tokens or gen_latents (see unified).
    """
    flow = prompts.family == "janusflow"
    count = image_tokens + 1 if flow else image_tokens  # the time embedding precedes the image
    image = torch.ones(count, dtype=torch.bool)
    ids, is_image, places, visible, dropped = [], [], [], [], []
    for caption in captions:
        row = prompts.conditional(caption)
        dropped.append(rng.random() < dropout)
        if dropped[-1]:
            row = prompts.unconditional(len(row.ids))
        ids.append(torch.cat((row.ids, torch.full((count,), prompts.pad))))
        is_image.append(torch.cat((torch.zeros_like(row.visible), image)))
        places.append(len(row.ids) + torch.arange(count))
        visible.append(torch.cat((row.visible, image)))
    return {
        "gen_ids": pad_rows(ids, prompts.pad),
        "gen_is_image": pad_rows(is_image, False),
        "gen_places": torch.stack(places),
        "gen_visible": pad_rows(visible, True),
        "gen_smoothing": torch.tensor(dropped, dtype=torch.float32),
        **({"gen_latents": codes.float()} if flow else {"gen_tokens": codes.long()}),
    }


def split_rows(count: int, ratio) -> tuple[int, int, int]:
    """Rows of understanding, generation and text in a batch of `count`; a ratio above 0 gives at least one row."""
    total = sum(ratio)
    understanding, text = (max(1, round(count * r / total)) if r else 0 for r in (ratio[0], ratio[2]))
    if ratio[1]:
        understanding = min(understanding, count - text - 1)
    return understanding, count - understanding - text, text
