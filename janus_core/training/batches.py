"""Rows of a training batch: prompts and questions as token ids, padded at the end."""

import random

import torch

from ..prompt import PromptEncoder
from .unified import IGNORED, PADDING

DROP_PROMPT = 0.1  # share of the rows that are trained without a prompt, for guidance


def pad_rows(rows, value):
    """1-D tensors of any lengths to one [B, longest], filled up with `value`."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def answer_rows(prompts: PromptEncoder, asked, image_tokens: int) -> dict:
    """Questions about one picture per row, with their answers and the end of sentence.

    The questions of a row share the picture in front of them and do not see one another: each has the positions and
    the attention that it would have alone, and the picture is read once for all.

    Args:
        asked: of each row a list of (question, answer).

    Returns:
        und_ids, und_replaced, und_labels, und_segments (see unified.Objective).
    """
    parts = {"und_ids": [], "und_replaced": [], "und_labels": [], "und_segments": []}
    for pairs in asked:
        row = [[], [], [], []]
        for number, (question, answer) in enumerate(pairs, start=1):
            one = prompts.question_ids(question, image_tokens)
            ids, labels = _with_answer(prompts, one.ids, answer)
            replaced = torch.cat((one.replaced, torch.zeros(len(ids) - len(one.ids), dtype=torch.bool)))
            start = int((one.ids == prompts.end).nonzero().max()) + 1  # what follows the picture is the question's own
            segments = torch.full_like(ids, number)
            segments[:start] = 0
            for kept, values in zip(row, (ids, replaced, labels, segments)):
                kept.append(values if number == 1 else values[start:])
        for kept, values in zip(parts.values(), row):
            kept.append(torch.cat(values))
    fill = {"und_ids": prompts.pad, "und_replaced": False, "und_labels": IGNORED, "und_segments": PADDING}
    return {name: pad_rows(rows, fill[name]) for name, rows in parts.items()}


def text_rows(prompts: PromptEncoder, pairs) -> dict:
    """Questions without a picture and their answers: text_ids, text_labels."""
    rows = [_with_answer(prompts, prompts.ids(prompts.chat(question)), answer) for question, answer in pairs]
    return {
        "text_ids": pad_rows((ids for ids, _ in rows), prompts.pad),
        "text_labels": pad_rows((labels for _, labels in rows), IGNORED),
    }


def _with_answer(prompts, asked, answer):
    start = 1 if prompts.add_bos else 0
    written = torch.cat((prompts.ids(" " + answer.strip())[start:], torch.tensor([prompts.eos])))
    return torch.cat((asked, written)), torch.cat((torch.full_like(asked, IGNORED), written))


def drawing_rows(prompts: PromptEncoder, captions, image_tokens: int, rng: random.Random) -> dict:
    """Prompts followed by the places of a picture, a tenth of them as sampling's unconditional row has it.

    AR: pads between BOS and begin-of-image, all visible; then `image_tokens` places. Flow: the last prompt token
    is left out, the pads are hidden, and one more place stands in front for the time embedding.

    Returns:
        gen_ids, gen_image, gen_visible, gen_dropped (see unified).
    """
    flow = prompts.family == "janusflow"
    ids, places, visible, dropped = [], [], [], []
    for caption in captions:
        row = prompts.generation_ids(caption)
        seen = torch.ones(len(row), dtype=torch.bool)
        dropped.append(rng.random() < DROP_PROMPT)
        if dropped[-1]:
            row = prompts.unconditional_ids(len(row))
            seen[1:-1] = not flow
        if flow:
            row, seen = row[:-1], seen[:-1]
        count = image_tokens + flow
        ids.append(torch.cat((row, torch.full((count,), prompts.pad))))
        places.append(torch.cat((torch.zeros(len(row), dtype=torch.bool), torch.ones(count, dtype=torch.bool))))
        visible.append(torch.cat((seen, torch.ones(count, dtype=torch.bool))))
    return {
        "gen_ids": pad_rows(ids, prompts.pad),
        "gen_image": pad_rows(places, False),
        "gen_visible": pad_rows(visible, True),
        "gen_dropped": torch.tensor(dropped),
    }


def split_rows(count: int, ratio) -> tuple[int, int, int]:
    """Rows of understanding, generation and text in a batch of `count`; a ratio over 0 gives at least one."""
    total = sum(ratio)
    understanding, text = (max(1, round(count * r / total)) if r else 0 for r in (ratio[0], ratio[2]))
    return understanding, count - understanding - text, text
