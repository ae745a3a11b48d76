"""The CONDITIONING of both families.

The conditioning tensor is the prompt's input embeddings [1, L, hidden] (JanusFlow: without the last token), so that
stock conditioning nodes act on what the model reads. The dict beside it says how it was encoded.
"""

from dataclasses import replace

import torch

from ..janus_core.errors import PromptError
from ..janus_core.prompt import unconditional_row

FAMILY, TEXT, IDS = "janus_family", "janus_text", "janus_ids"
ENCODED = "janus_encoded"  # the tensor as it was encoded, to detect changes by stock nodes
SPECIAL = "janus_special"  # embeddings of begin-of-sentence, pad and start-of-generation, [3, hidden]
PART = "janus_part"  # how the second conditional row differs from the tensor (janus_core.finetunes: Part)
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
    ids = prompts.model_ids(ids)
    embedded = embed(torch.cat((ids, prompts.special_ids)))
    tensor = embedded[:-3].unsqueeze(0)
    return tensor, {
        FAMILY: prompts.family,
        TEXT: text,
        IDS: ids,
        ENCODED: tensor,
        SPECIAL: embedded[-3:],
        MASK: torch.ones(1, len(ids), dtype=torch.long),
    }


def of_prompt(embedder, prompt, text: str, device):
    """The two CONDITIONINGs of a GenerationPrompt of a fine-tuned model, and of a batch of them that differ in images.

    Args:
        prompt: a GenerationPrompt, or a list of them whose token ids and unconditional rows are the same.
        text: what the user wrote.
        device: for tensors that pass between nodes.

    Returns:
        (positive, negative). If guidance moves away from the unconditional row, the negative is an empty prompt, which
        the sampler aligns to the positive.
    """
    prompts = prompt if isinstance(prompt, list) else [prompt]
    first, encoder = prompts[0], embedder.prompts
    special = embedder.text(encoder.special_ids).float().to(device)

    def entry(embeds, tokens, text, **more):
        tensor = embeds.float().to(device)
        visible = tokens.visible.long()[None]
        return tensor, {FAMILY: encoder.family, TEXT: text, IDS: tokens.ids, SPECIAL: special, MASK: visible, **more}

    positive = entry(torch.stack([one.embeds for one in prompts]), first.tokens, text)
    if first.part is not None:
        positive[1][PART] = replace(first.part, pad=first.part.pad.float().to(device))
    negative = entry(first.uncond_embeds[None], first.uncond_tokens, "")
    if torch.equal(first.uncond_tokens.ids, encoder.unconditional(len(first.uncond_tokens.ids)).ids):
        negative[1][ENCODED] = negative[0]
    return [list(positive)], [list(negative)]


def check(tensor, extra: dict, network):
    """Raises PromptError unless the conditioning was encoded by the CLIP of this network's family and width."""
    family, found = network.family, extra.get(FAMILY)
    if found != family:
        source = f"the CLIP of {LOADERS[found]}" if found in LOADERS else "another model's CLIP"
        problem = "has no prompt" if tensor is None else f"comes from {source}"
        raise PromptError(
            f"This conditioning {problem}: a {TITLES[family]} model needs prompts encoded by the CLIP of "
            f"{LOADERS[family]}."
        )
    width = network.params.llama.hidden_size
    if tensor.shape[-1] != width:
        raise PromptError(
            f"This conditioning is {tensor.shape[-1]} wide and the model {width}: encode the prompt with the CLIP of "
            "the same checkpoint."
        )


def is_unconditional(tensor, extra: dict) -> bool:
    """Whether this is an empty prompt that no node has changed; as a negative it means the unconditional row."""
    encoded = extra.get(ENCODED)
    return (
        encoded is not None
        and not extra[TEXT].strip()
        and (tensor is encoded or (tensor.shape == encoded.shape and torch.equal(tensor, encoded)))
    )


def unconditional(extra: dict, length: int):
    """The unconditional row beside a positive prompt of `length` tokens (janus_core.prompt.unconditional_row).

    Returns:
        (tensor [1, length, hidden], visible long [1, length]).
    """
    row, visible = unconditional_row(extra[FAMILY], length)
    return extra[SPECIAL][row].unsqueeze(0), visible.long().unsqueeze(0)


def visible_tokens(tensor, extra: dict):
    """The attention mask, long [1, L]; tokens that a stock node appended are visible."""
    mask = extra.get(MASK)
    length = tensor.shape[1]
    if mask is None:
        return torch.ones(1, length, dtype=torch.long)
    mask = mask.long()[:, :length]
    return torch.nn.functional.pad(mask, (0, length - mask.shape[1]), value=1)
