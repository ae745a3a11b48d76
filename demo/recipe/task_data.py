"""Rows of the toy tasks, as the recipes of janus_core/finetunes ask for them, and what is learnt in them."""

import random
from dataclasses import dataclass

import torch

from janus_core.finetunes import reflect
from janus_core.finetunes.edit import edit_text
from janus_core.finetunes.generation_prompt import Embedder
from janus_core.finetunes.think import RECIPES, recipe_of
from janus_core.prompt import PromptEncoder
from janus_core.training.batches import pad_rows
from janus_core.training.unified import IGNORED

from .captions import caption, whole_caption
from .plans import plan_of
from .scene_data import WHOLE, mixed_scene, scene_pixels, smoothing_shares
from .scenes import Scene
from .tasks import check_of, distinct_scene, edit_of

TEXT, SEEN, ENCODED, TARGET = range(4)  # kinds of positions
DROP_PROMPT = 0.1  # share of the rows without a prompt, for guidance
DROP_ENCODED = 0.5  # share of the edits that are trained without the image's VQ tokens, as Janus-4o was


@dataclass
class Row:
    """A row of a batch, built from left to right.

    Attributes:
        ids, kinds, labels, visible: of every position; a label is IGNORED where no text is learnt.
        images: scenes as the vision tower sees them.
        tokens: scenes as VQ tokens, given or to be learnt, in the order of their positions.
        smoothing: share of the unconditional rows' label smoothing (see scene_data.smoothing_shares).
    """

    prompts: PromptEncoder
    ids: list
    kinds: list
    labels: list
    visible: list
    images: list
    tokens: list
    smoothing: float = WHOLE

    @classmethod
    def of(cls, prompts: PromptEncoder) -> "Row":
        return cls(prompts, [], [], [], [], [], [])

    def text(self, ids, learnt: bool = False, visible=None):
        ids = torch.as_tensor(ids, dtype=torch.long)
        self._add(ids, TEXT, ids if learnt else torch.full_like(ids, IGNORED), visible)

    def without_prompt(self, length: int):
        """The unconditional row of that many tokens."""
        self.text(self.prompts.unconditional(length).ids)
        self.smoothing = 1.0

    def image(self, scene: Scene, kind: int, count: int):
        ids = torch.full((count,), self.prompts.placeholder)
        self._add(ids, kind, torch.full_like(ids, IGNORED))
        (self.images if kind == SEEN else self.tokens).append(scene)

    def _add(self, ids, kind, labels, visible=None):
        self.ids.append(ids)
        self.kinds.append(torch.full_like(ids, kind))
        self.labels.append(labels)
        self.visible.append(torch.ones(len(ids), dtype=torch.bool) if visible is None else visible)


class TaskBatches:
    """Batches of edits, plans and checks by index.

    Args:
        embedder: of the model; its prompts encode.
        encode: pixels [B, 3, S, S] to VQ tokens [B, N].
        seen, encoded: positions of an image as the vision tower sees it, and as VQ tokens.
        rows: rows per batch.
        ratio: of edits, plans, checks and plain prompts.
    """

    def __init__(self, embedder: Embedder, encode, seen: int, encoded: int, rows: int, ratio, seed: int):
        self.embedder, self.prompts, self.encode = embedder, embedder.prompts, encode
        self.seen, self.encoded, self.rows, self.ratio, self.seed = seen, encoded, rows, ratio, seed

    def __call__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed} {index}")
        makers = (self.edit, self.plan, self.check, self.plain)
        rows = [maker(rng) for maker in rng.choices(makers, self.ratio, k=self.rows)]
        images = [scene for row in rows for scene in row.images]
        tokens = [scene for row in rows for scene in row.tokens]
        fill = {"ids": self.prompts.pad, "kinds": TEXT, "labels": IGNORED, "visible": True}
        batch = {
            f"task_{name}": pad_rows([torch.cat(getattr(row, name)) for row in rows], value)
            for name, value in fill.items()
        }
        batch["task_smoothing"] = torch.tensor([row.smoothing for row in rows])
        if images:
            batch["task_pixels"] = scene_pixels(images)
        if tokens:
            batch["task_tokens"] = self.encode(scene_pixels(tokens)).flatten()
        return batch

    def edit(self, rng: random.Random) -> Row:
        scene = distinct_scene(rng)
        edit = edit_of(scene, rng)
        ids = self.prompts.ids(edit_text(self.prompts, edit.instruction, self.seen, self.encoded))
        row = Row.of(self.prompts)
        if rng.random() < DROP_PROMPT:
            row.without_prompt(len(ids))
        else:
            first = int((ids == self.prompts.placeholder).nonzero()[0])
            second = first + self.seen + 2
            row.text(ids[:first])
            row.image(scene, SEEN, self.seen)
            row.text(ids[first + self.seen : second])
            if rng.random() < DROP_ENCODED:
                row.text(ids[second : second + self.encoded])
            else:
                row.image(scene, ENCODED, self.encoded)
            row.text(ids[second + self.encoded :])
        row.image(edit.target, TARGET, self.encoded)
        return row

    def plan(self, rng: random.Random) -> Row:
        scene, name = mixed_scene(rng), rng.choice(list(RECIPES))
        request = recipe_of(name).request(self.embedder, whole_caption(scene, rng).text)
        plan = request.prompts.ids(plan_of(scene, name), bos=False)
        end = request.prompts.begin if name != "t2i-r1" else request.prompts.eos
        ids = torch.cat((request.ids, plan, torch.tensor([end])))
        row = Row.of(self.prompts)
        if name == "t2i-r1" and rng.random() < 0.3:
            row.text(request.ids)
            row.text(ids[len(request.ids) :], learnt=True)
            return row
        if name == "t2i-r1":  # the image is generated in a context of its own
            ids = torch.tensor(request.recipe.finish(request, ids[len(request.ids) :].tolist())[1])
            start = len(ids)
        else:
            start = len(request.ids)
        if rng.random() < DROP_PROMPT:
            row.without_prompt(len(ids))
        else:
            row.text(ids[:start])
            row.text(ids[start:], learnt=True)
        row.image(scene, TARGET, self.encoded)
        return row

    def check(self, rng: random.Random) -> Row:
        check = check_of(mixed_scene(rng), rng)
        prompts, row = self.prompts, Row.of(self.prompts)
        ids = reflect.prompt_ids(prompts, check.prompt.text)
        question, again = prompts.ids(reflect.CHECK, bos=False), prompts.ids(reflect.AGAIN, bos=False)
        answer = [reflect.yes_no_ids(prompts)[0 if check.matches else 1]]
        answer = torch.tensor([*answer, *prompts.ids(check.reason, bos=False).tolist(), prompts.eos])
        redraw = rng.random() < 0.5
        if redraw and rng.random() < DROP_PROMPT:
            ids[1:-1] = prompts.pad
            row.smoothing = 1.0
        row.text(ids)
        row.image(check.shown, ENCODED if redraw else SEEN, self.encoded if redraw else self.seen)
        row.text(question)
        row.text(answer, learnt=not redraw, visible=(answer != prompts.eos) if redraw else None)
        if redraw:
            row.text(again)
            row.image(check.asked, TARGET, self.encoded)
        return row

    def plain(self, rng: random.Random) -> Row:
        scene, row = mixed_scene(rng), Row.of(self.prompts)
        says = caption(scene, rng)
        row.text(self.prompts.conditional(says.text).ids)
        row.smoothing = smoothing_shares([says], torch.tensor([False])).item()
        row.image(scene, TARGET, self.encoded)
        return row
