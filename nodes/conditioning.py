"""The CONDITIONING of both families.

The conditioning tensor is the prompt's input embeddings [1, L, hidden] (JanusFlow: without the last token), so that
stock conditioning nodes act on what the model reads. The dict beside it says where it came from.
"""

import torch

from ..janus_core.errors import PromptError

FAMILY, TEXT, IDS = "janus_family", "janus_text", "janus_ids"
ENCODED = "janus_encoded"  # the tensor as it was encoded, to notice what stock nodes change
SPECIAL = "janus_special"  # embeddings of begin-of-sentence, pad and start-of-generation, [3, hidden]
MASK = "attention_mask"
TITLES = {"janus": "Janus-Pro", "janusflow": "JanusFlow"}
LOADERS = {"janus": "Load Janus-Pro", "janusflow": "Load JanusFlow"}


def encode(prompts, text: str, ids, embed):
    """Encodes a prompt.

    Args:
        prompts: the model's PromptEncoder.
        text, ids: the prompt and its token ids [L].
        embed: token ids [L] to float32 embeddings [L, hidden].

    Returns:
        (tensor [1, L, hidden], dict).
    """
    if prompts.family == "janusflow":
        ids = ids[:-1]
    special = torch.tensor([prompts.bos, prompts.pad, prompts.start])
    embedded = embed(torch.cat((ids, special)))
    tensor = embedded[:-3].unsqueeze(0)
    return tensor, {
        FAMILY: prompts.family,
        TEXT: text,
        IDS: ids,
        ENCODED: tensor,
        SPECIAL: embedded[-3:],
        MASK: torch.ones(1, len(ids), dtype=torch.long),
    }


def check(tensor, extra: dict, network):
    """Raises PromptError unless the conditioning was encoded by the CLIP of this network's family and width."""
    family, found = network.family, extra.get(FAMILY)
    if found != family:
        made_by = f"the CLIP of {LOADERS[found]}" if found in LOADERS else "another model's CLIP"
        raise PromptError(
            f"This conditioning comes from {made_by}: a {TITLES[family]} model needs prompts encoded by the CLIP of "
            f"{LOADERS[family]}."
        )
    width = network.params.llama.hidden_size
    if tensor.shape[-1] != width:
        raise PromptError(
            f"This conditioning is {tensor.shape[-1]} wide and the model {width}: encode the prompt with the CLIP of "
            "the same checkpoint."
        )


def is_unconditional(tensor, extra: dict) -> bool:
    """Whether this is an empty prompt as it was encoded, which on the negative side means the unconditional row."""
    encoded = extra.get(ENCODED)
    return (
        encoded is not None
        and not extra[TEXT].strip()
        and (tensor is encoded or (tensor.shape == encoded.shape and torch.equal(tensor, encoded)))
    )


def unconditional(extra: dict, length: int):
    """The published unconditional row, aligned to a positive prompt.

    Returns:
        (tensor [1, length, hidden], visible long [1, length]): JanusFlow hides the pads, Janus-Pro does not.
    """
    bos, pad, start = extra[SPECIAL]
    row = pad.repeat(length, 1)
    row[0] = bos
    visible = torch.ones(1, length, dtype=torch.long)
    if extra[FAMILY] == "janusflow":
        visible[:, 1:] = 0
    else:
        row[-1] = start
    return row.unsqueeze(0), visible


def visible_tokens(tensor, extra: dict):
    """The attention mask, long [1, L], grown with ones where a stock node made the prompt longer."""
    mask = extra.get(MASK)
    length = tensor.shape[1]
    if mask is None:
        return torch.ones(1, length, dtype=torch.long)
    mask = mask.long()[:, :length]
    return torch.nn.functional.pad(mask, (0, length - mask.shape[1]), value=1)
