"""The base of both models: a language model that reads text and images and writes text."""

import torch
from torch import nn

from .networks.llama import CausalLM, LlamaParams


class VisionLanguageModel(nn.Module):
    """Base of Janus and JanusFlow.

    A subclass has `family`, `params` (with `llama` and `siglip`), `embed_images`, and `unused_in_generation`: prefixes
    of the names of weights that generating an image does not read, apart from the embeddings of the prompt's tokens.
    """

    def __init__(self, llama: LlamaParams, operations, attention, device, dtype):
        super().__init__()
        self.language_model = CausalLM(llama, operations, attention, device, dtype)

    @property
    def llama(self):
        """The decoder, from embeddings to hidden states."""
        return self.language_model.model

    def embed_text(self, ids, dtype: torch.dtype):
        """Token ids [...] to embeddings [..., hidden] in `dtype`."""
        return self.llama.embed_tokens(ids).to(dtype)

    def text_logits(self, hidden):
        """Hidden states [..., hidden] to logits over the vocabulary, float32."""
        return self.language_model.lm_head(hidden).float()
