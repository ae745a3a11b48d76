"""The Python API: a pipeline for each family, which generates and describes images."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from .errors import ImageError, SamplingError
from .finetunes.generation_prompt import GenerationPrompt, batch_rows
from .finetunes.methods import FineTunedModels
from .image import check_latents, crop_to_multiple, to_images, to_pixels
from .janusflow import VAE_DOWNSCALE
from .networks.vq import latent_to_tokens, tokens_to_latent
from .pipeline_base import Pipeline, prompt_list
from .progress import Callback, report
from .sampling import flow
from .sampling.cuda_graphs import capture_for
from .sampling.decode_loop import decode_loop
from .sampling.settings import FlowSamplerSettings, TokenSamplerSettings, image_seeds, settings_of
from .sampling.tokens import sample_image_tokens
from .schema import shown
from .vae import LatentVAE

Prompt = str | GenerationPrompt | Sequence[str | GenerationPrompt]  # of JanusPipeline


class JanusPipeline(FineTunedModels, Pipeline):
    """Janus and Janus-Pro. Latents are token latents: float32 codebook vectors [B, 8, h, w].

    A prompt is a text, a GenerationPrompt (of `think` or `reflect`), or a list of these, one per image.
    """

    def __init__(self, model, prompts, device, dtype, vq):
        super().__init__(model, prompts, device, dtype)
        self.vq = vq
        self.codebook = model.codebook.to(device)

    def encode_prompt(self, prompt: str, negative_prompt: str = "", **chat) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the conditional and the unconditional row [1, L, hidden].

        A negative prompt that is not empty takes the unconditional row's place. `chat`: roles and system_prompt.
        """
        cond, uncond = self.prompts.guidance_rows(prompt, negative_prompt, **chat)
        return self.embed(cond), self.embed(uncond)

    @torch.inference_mode()
    def __call__(self, prompt: Prompt, *, size: tuple[int, int] | None = None, **settings) -> list[Image.Image]:
        """Generates images; the arguments are those of `generate_tokens`."""
        return self.decode_tokens(self.generate_tokens(prompt, size=size, **settings), size)

    def generate_latents(self, prompt: Prompt, *, size: tuple[int, int] | None = None, **settings) -> torch.Tensor:
        """Samples token latents, float32 [num_images, 8, h, w]; the arguments are those of `generate_tokens`."""
        grid = self.grid(size)
        return tokens_to_latent(self.generate_tokens(prompt, size=size, **settings), self.codebook, grid)

    @torch.inference_mode()
    def generate_tokens(
        self,
        prompt: Prompt,
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        seeds: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        roles: str = "auto",
        system_prompt: str = "",
        cuda_graphs: bool | None = None,
        triton: bool | None = None,
        callback: Callback | None = None,
        **settings,
    ) -> torch.Tensor:
        """Samples image tokens.

        Args:
            num_images: images of one prompt; image k uses the random numbers of seed + k, whatever the number. Of a
                list of prompts each gives one image.
            seeds: a seed per image, instead of seed + k.
            size: (width, height) in pixels, multiples of 16; the native size when None.
            roles: of prompts that are texts: "auto" for the checkpoint's own, "<|User|>" or "User".
            system_prompt: of prompts that are texts, in front of them.
            cuda_graphs: on an NVIDIA GPU, capture the work of a token once and replay it. Experimental, since it has
                not yet run on a GPU; None reads JANUS_CUDA_GRAPHS (1 is on).
            triton: let captured steps use the Triton decoder; likewise, None reads JANUS_TRITON_DECODER.
            callback: called after every token with (done, total); returning False cancels.
            settings: fields of TokenSamplerSettings: seed, guidance, guidance_interval, temperature, top_k, top_p,
                window.

        Returns:
            int64 [num_images, N] in raster order.

        Raises:
            PromptError, SamplingError, ImageError, Cancelled.
        """
        settings = settings_of(TokenSamplerSettings, settings)
        prompts, num_images = prompt_list(prompt, num_images)
        h, w = self.grid(size)
        seeds = image_seeds(settings.seed, seeds, num_images)
        chat = {"roles": roles, "system_prompt": system_prompt}
        prompts = [self.generation_prompt(one, negative_prompt, **chat) for one in prompts]
        cond, uncond, part, part_weight = batch_rows(prompts)
        steps = sample_image_tokens(
            self.model,
            cond,
            uncond,
            h * w,
            replace(settings, seed=0),
            part=part,
            part_weight=part_weight,
            image_indices=seeds,
            decode=decode_loop(settings.window, w, capture_for(self.device, cuda_graphs), triton),
        )
        for step in steps:
            report(callback, step.position + 1, h * w)
        return step.tokens

    @property
    def patch_size(self) -> int:
        return self.vq.params.downscale

    @torch.inference_mode()
    def decode_tokens(self, tokens: torch.Tensor, size: tuple[int, int] | None = None) -> list[Image.Image]:
        """Images of tokens [B, N] that were generated at `size`, one at a time to keep memory low."""
        grid = self.grid(size)
        h, w, entries = *grid, len(self.codebook)
        whole = isinstance(tokens, torch.Tensor) and tokens.dtype == torch.int64 and tokens.dim() == 2
        if not whole or tokens.shape[1] != h * w or not len(tokens) or tokens.min() < 0 or tokens.max() >= entries:
            raise ImageError(f"Tokens must be int64 of shape [images, {h * w}], each from 0 to {entries - 1}.")
        pixels = [self.vq.decode_tokens(row[None], grid, self.vq_dtype) for row in tokens.to(self.device)]
        return to_images(torch.cat(pixels))

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Images of token latents, one at a time to keep memory low."""
        check_latents(latents, self.vq.params.codebook_dim)
        return to_images(torch.cat([self.decode_pixels(latent[None]) for latent in latents]))

    @torch.inference_mode()
    def decode_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Token latents [B, 8, h, w] to float32 pixels [B, 3, H, W] around [-1, 1], not clamped."""
        check_latents(latents, self.vq.params.codebook_dim)
        return self.vq.decode(latents.to(self.device, self.vq_dtype)).float()

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> torch.Tensor:
        """The token latent [1, 8, h, w] of an image, centre-cropped to multiples of 16 pixels."""
        pixels = crop_to_multiple(to_pixels(image)[None], self.patch_size)
        return self.vq.encode(pixels.to(self.device, self.vq_dtype))

    def encode_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """The tokens int64 [B, h * w] of pixels [B, 3, H, W] in [-1, 1], sides multiples of 16."""
        return self.vq.encode_tokens(pixels.to(self.device, self.vq_dtype))

    def tokens_of(self, latents: torch.Tensor) -> torch.Tensor:
        """int64 [B, h * w], the nearest codebook entries of token latents."""
        check_latents(latents, self.vq.params.codebook_dim)
        return latent_to_tokens(latents.to(self.device), self.codebook)

    @property
    def vq_dtype(self) -> torch.dtype:
        return self.vq.post_quant_conv.weight.dtype


class JanusFlowPipeline(Pipeline):
    """JanusFlow. Latents are SDXL's, scaled by 0.13025: [B, 4, h, w]."""

    def __init__(self, model, prompts, device, dtype, vae: LatentVAE | None = None):
        super().__init__(model, prompts, device, dtype)
        self.vae = vae

    @property
    def patch_size(self) -> int:
        return VAE_DOWNSCALE * self.model.params.uvit.stride

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> tuple[flow.PromptEmbeds, flow.PromptEmbeds]:
        """The conditional and the unconditional prompt; a negative prompt takes the unconditional one's place."""
        rows = self.prompts.guidance_rows(prompt, negative_prompt)
        return tuple(
            flow.PromptEmbeds(self.embed(row), None if row.visible.all() else row.visible[None].to(self.device))
            for row in rows
        )

    @torch.inference_mode()
    def __call__(self, prompt: str | Sequence[str], **settings) -> list[Image.Image]:
        """Generates images; the arguments are those of `generate_latents`."""
        self._need_vae()
        return self.decode(self.generate_latents(prompt, **settings))

    @torch.inference_mode()
    def generate_latents(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        seeds: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        noise: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        cuda_graphs: bool | None = None,
        callback: Callback | None = None,
        **settings,
    ) -> torch.Tensor:
        """Integrates the flow from noise, or from given latents.

        Args:
            prompt: a text, or a list of texts, each of which gives one image.
            num_images: images of one prompt.
            seeds: a seed per image, so that an image does not depend on its batch: it is the first one of its seed.
            size: (width, height) in pixels, multiples of 16; when None, that of the latents, or native.
            noise: [num_images, 4, h, w] instead of `torch.randn` from `torch.manual_seed(seed)` on the CPU.
            latents: scaled latents [1 or num_images, 4, h, w] to start from (see `encode`), with `denoise` < 1: the run
                starts from their blend with the noise.
            cuda_graphs: on an NVIDIA GPU, capture the work of a step once and replay it. Experimental, since it has not
                yet run on a GPU; None reads JANUS_CUDA_GRAPHS (1 is on).
            callback: called after every step with (done, total); returning False cancels.
            settings: fields of FlowSamplerSettings: seed, guidance, guidance_interval, steps, denoise.

        Returns:
            float32 latents [num_images, 4, h, w].

        Raises:
            PromptError, SamplingError, ImageError, Cancelled.
        """
        settings = settings_of(FlowSamplerSettings, settings)
        prompts, num_images = prompt_list(prompt, num_images)
        times = flow.flow_times(settings.steps, settings.denoise)
        if (latents is None) != (settings.denoise == 1):
            raise SamplingError("A denoise below 1 and latents to start from need each other.")
        z = self._noise(settings.seed, seeds, num_images, size, noise, latents).to(self.device, torch.float32)
        if latents is not None:
            z = times[0] * latents.to(z) + (1 - times[0]) * z
        velocity = flow.guided_velocity(
            self.model,
            *map(flow.stacked, zip(*(self.encode_prompt(one, negative_prompt) for one in prompts))),
            z,
            settings.guidance,
            settings.guidance_interval,
            capture_for(self.device, cuda_graphs),
        )
        for step in flow.integrate(lambda z, t: velocity(z.to(self.dtype), t).float(), z, times):
            report(callback, step.step + 1, settings.steps)
        return step.z

    def _noise(self, seed: int, seeds, num_images: int, size, noise, latents) -> torch.Tensor:
        """The noise [num_images, 4, h, w] of a run, given or from the seeds; the arguments are of generate_latents."""
        channels, stride = self.model.params.uvit.latent_channels, self.model.params.uvit.stride
        h, w = (tokens * stride for tokens in self.grid(size))
        for name, tensor, counts in (("latents", latents, (1, num_images)), ("noise", noise, (num_images,))):
            if tensor is not None:
                check_latents(tensor, channels, stride, counts)
                if size is not None and tensor.shape[-2:] != (h, w):
                    raise ImageError(f"The {name} are {list(tensor.shape)}, which is not of the size {shown(size)}.")
        if latents is not None:
            h, w = latents.shape[-2:]
        if noise is None:
            runs = [(seed, num_images)]
            if seeds is not None:
                runs = [(one, 1) for one in image_seeds(seed, seeds, num_images)]
            return torch.cat([flow.seeded_noise(seed, (count, channels, h, w)) for seed, count in runs])
        if latents is not None and noise.shape[-2:] != latents.shape[-2:]:
            raise ImageError(f"The noise is {list(noise.shape)}, the latents are {list(latents.shape)}.")
        return noise

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Images of scaled latents, one at a time to keep memory low."""
        vae = self._need_vae()
        check_latents(latents, self.model.params.uvit.latent_channels)
        return to_images(torch.cat([vae.decode(latent[None]) for latent in latents]))

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> torch.Tensor:
        """Scaled latents [1, 4, h, w] of an image, centre-cropped to multiples of 16 pixels."""
        return self._need_vae().encode(crop_to_multiple(to_pixels(image)[None], self.patch_size))

    def _need_vae(self) -> LatentVAE:
        if self.vae is None:
            raise SamplingError(
                "JanusFlow needs the SDXL VAE for images: give its file as vae=… or --vae (`python -m janus_core "
                "download --vae` fetches it)."
            )
        return self.vae
