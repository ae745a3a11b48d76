"""The CLIP of both families: prompts to embeddings, and questions about images to text.

It wraps the MODEL's module through a clone of the MODEL's patcher, so the weights exist once and are loaded once.
"""

import comfy.hooks
import comfy.model_management
import comfy.sd
import torch

from ..janus_core.describe import answer_steps
from ..janus_core.errors import PromptError
from ..janus_core.finetunes.generation_prompt import Embedder
from ..janus_core.image import array_to_image
from ..janus_core.prompt import PromptEncoder
from ..janus_core.sampling.settings import MAX_NEW_TOKENS, TextSamplerSettings
from ..janus_core.sampling.text import strip_end
from . import conditioning

TOKENS, IMAGES = "janus", "janus_images"


class Tokens(dict):
    """What the tokenizer returns. Raises PromptError where a stock node looks for another text encoder's tokens."""

    def __missing__(self, key):
        raise PromptError(
            f"This node encodes prompts for another kind of model (it looks for {key!r}): use Janus Prompt (CFG) or "
            "CLIP Text Encode."
        )


class JanusTokenizer:
    """The tokenizer that ComfyUI's CLIP calls.

    Args:
        model: the JanusBaseModel of the CLIP.
    """

    def __init__(self, model, prompts: PromptEncoder):
        self.model = model
        self.prompts = prompts

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        """Tokenizes a prompt; with an `image` argument, which stock text generation gives, a question.

        `(words:1.2)` is literal text: every weight is 1. `roles` and `system_prompt` are those of PromptEncoder.chat.
        """
        tokens = Tokens({conditioning.TEXT: text})
        if "image" in kwargs:
            tokens[IMAGES] = kwargs["image"]
        chat = {name: kwargs[name] for name in ("roles", "system_prompt") if name in kwargs}
        ids = self.prompts.generation_ids(text, **chat).tolist()
        tokens[TOKENS] = [[(i, 1.0, k) if return_word_ids else (i, 1.0) for k, i in enumerate(ids)]]
        return tokens

    def decode(self, ids, skip_special_tokens=True):
        return self.prompts.decode(ids).strip()

    def state_dict(self):
        """What CLIP Save adds to the model's weights, so that its file is one that our loaders read."""
        return self.model.saved_beside()


class JanusTextModel:
    """The `cond_stage_model` of a Janus CLIP, on the MODEL's own module.

    Args:
        model: a JanusBaseModel.
    """

    def __init__(self, model, prompts: PromptEncoder):
        self.model = model
        self.prompts = prompts
        self.execution_device = None

    @property
    def network(self):
        return self.model.diffusion_model

    def state_dict(self):
        return self.model.state_dict()

    def reset_clip_options(self):
        self.execution_device = None

    def set_clip_options(self, options):
        self.execution_device = options.get("execution_device", self.execution_device)

    def embed(self, ids):
        """Token ids [L] to float32 embeddings [L, hidden], on the device for tensors that pass between nodes."""
        embedded = self.network.embed_text(ids.to(self.execution_device), torch.float32)
        return embedded.to(comfy.model_management.intermediate_device())

    def encode_token_weights(self, tokens):
        ids = torch.tensor([pair[0] for pair in tokens[TOKENS][0]])
        tensor, extra = conditioning.encode(self.prompts, tokens[conditioning.TEXT], ids, self.embed)
        return tensor, None, extra

    def answer_bytes(self, answers: int, max_new_tokens: int, images: int = 1) -> int:
        """Memory of answering this many questions at once, in bytes."""
        length = images * self.network.params.siglip.tokens + 256
        return self.model.cache_bytes(answers, length + max_new_tokens) + self.model.activation_bytes(answers, length)

    def memory_estimation_function(self, tokens, device=None):
        return self.answer_bytes(1, 512) if IMAGES in tokens else 0

    def answers(self, images, question: str, settings: TextSamplerSettings, **chat):
        """Answers a question about each image.

        Args:
            images: IMAGE [B, H, W, C] in [0, 1], or None for a question without an image.
            chat: roles and system_prompt, see PromptEncoder.chat.

        Yields:
            int64 [B, n] after each token, see janus_core.describe.
        """
        groups = [[]] if images is None else [[array_to_image(one)] for one in images]
        device, dtype = self.execution_device, self.model.get_dtype_inference()
        return answer_steps(self.network, self.prompts, groups, question, settings, device=device, dtype=dtype, **chat)

    @property
    def embedder(self) -> Embedder:
        """What makes the prompts of fine-tuned models."""
        return Embedder(self.network, self.prompts, self.execution_device, self.model.get_dtype_inference())

    def generate(self, tokens, do_sample, max_length, temperature, top_k, top_p, seed=None, **kwargs):
        """Called by stock text generation: an answer about the first image, of at most MAX_NEW_TOKENS."""
        images = tokens.get(IMAGES)
        settings = TextSamplerSettings(
            max_new_tokens=min(max_length, MAX_NEW_TOKENS),
            temperature=temperature if do_sample else 0,
            top_k=top_k,
            top_p=top_p,
            seed=seed or 0,
        )
        answer = None
        for answer in self.answers(None if images is None else images[:1], tokens[conditioning.TEXT], settings):
            comfy.model_management.throw_exception_if_processing_interrupted()
        return strip_end(answer[0], self.prompts.eos)


def make_clip(patcher, checkpoint) -> comfy.sd.CLIP:
    """The CLIP that shares a MODEL patcher's weights."""
    prompts = PromptEncoder.of(checkpoint)
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = JanusTextModel(patcher.model, prompts)
    clip.tokenizer = JanusTokenizer(patcher.model, prompts)
    clip.patcher = patcher.clone()
    clip.patcher.is_clip = True
    clip.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
    clip.layer_idx = None
    clip.use_clip_schedule = False
    clip.apply_hooks_to_conds = None
    clip.tokenizer_options = {}
    return clip
