"""From CONDITIONINGs to the rows that janus_core's token sampler reads."""

from dataclasses import dataclass, replace

from ..janus_core.errors import PromptError
from ..janus_core.finetunes.generation_prompt import common_weight
from ..janus_core.sampling.tokens import PromptRow
from . import conditioning


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch: lists of one row for all images, or of one row per image.

    Attributes:
        part: second conditional rows, of weight part_weight; None without them.
    """

    cond: list[PromptRow]
    uncond: list[PromptRow]
    part: list[PromptRow] | None
    part_weight: float

    @property
    def rows_per_image(self) -> int:
        return 2 if self.part is None else 3

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(row.embeds) for row in (*self.cond, *self.uncond))

    def to(self, device, dtype) -> "Prompts":
        def moved(rows):
            return rows and [row._replace(embeds=row.embeds.to(device, dtype)) for row in rows]

        return replace(self, cond=moved(self.cond), uncond=moved(self.uncond), part=moved(self.part))


def read_prompts(positive, negative, batch: int, network) -> Prompts:
    """The rows of the two CONDITIONINGs.

    A CONDITIONING has one entry for all images, or one entry per image. An empty negative prompt becomes the
    unconditional row of the positive's length. A second conditional row is made from the positive's tensor as it is, so
    that what stock nodes do to the tensor holds for both rows; that of a negative is not used.

    Raises:
        PromptError: an entry is of another model, or the numbers of prompts and images differ.
    """
    cond, part, uncond = [], [], []
    positives, negatives = entries(positive, "positive", batch, network), entries(negative, "negative", batch, network)
    for tensor, extra in positives:
        cond += tensor_rows(tensor, extra)
        if conditioning.PART in extra:
            part += tensor_rows(extra[conditioning.PART].embeds(tensor), extra)
    lengths = [len(row.embeds) for row in cond]
    for k, (tensor, extra) in enumerate(negatives):
        if not conditioning.is_unconditional(tensor, extra):
            uncond += tensor_rows(tensor, extra)
            continue
        wanted = lengths if len(negatives) == 1 else [lengths[min(k, len(lengths) - 1)]]
        for length in wanted[:1] if len(set(wanted)) == 1 else wanted:
            row, visible = conditioning.unconditional(extra, length)
            uncond += tensor_rows(row, {conditioning.MASK: visible})
    weight = common_weight([extra.get(conditioning.PART) for _, extra in positives])
    return Prompts(cond, uncond, part if weight else None, weight or 0.0)


def entries(conds, name: str, batch: int, network) -> list:
    """The checked (tensor, dict) entries of a CONDITIONING: one, or one for each image."""
    if len(conds) not in (1, batch):
        raise PromptError(
            f"Janus Token Sampler takes one prompt as {name}, or one for each image of the batch; this conditioning "
            f"holds {len(conds)}, the batch {batch}: join them with Conditioning (Concat) or (Average) instead of "
            "(Combine)."
        )
    for tensor, extra in conds:
        conditioning.check(tensor, extra, network)
        if len(tensor) != 1 and (len(tensor) != batch or len(conds) > 1):
            raise PromptError(f"The conditioning holds {len(tensor)} prompts for a batch of {batch} images.")
        if getattr(extra.get("hooks"), "hooks", None):
            raise PromptError(
                "Janus Token Sampler cannot apply hooks, such as a hook LoRA: connect Load LoRA between Load Janus-Pro "
                "and this node instead."
            )
    return conds


def tensor_rows(tensor, extra: dict) -> list[PromptRow]:
    """The rows of a conditioning tensor [B, L, hidden]."""
    (visible,) = conditioning.visible_tokens(tensor, extra).bool().cpu()
    return [PromptRow(embeds, None if visible.all() else visible) for embeds in tensor]


def rows(prompts: list[PromptRow], part: slice) -> list[PromptRow]:
    """The rows of a part of the batch; a single row stands for the whole batch."""
    return prompts if len(prompts) == 1 else prompts[part]
