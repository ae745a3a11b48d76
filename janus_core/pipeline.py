"""The Python API: load a checkpoint, draw pictures, describe pictures."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from . import cpu, image
from .checkpoint import build_model, build_vq, quantized, quantized_layers, read_checkpoint
from .errors import DeviceError, ImageError, SamplingError
from .janusflow import VAE_DOWNSCALE, JanusFlow
from .networks.vq import latent_to_tokens, tokens_to_latent
from .prompt import PromptEncoder, question_embeds
from .quantized import operations_over
from .sampling import flow, text, tokens
from .sampling.choice import Choice, check_range
from .sampling.recording import recorder
from .vae import LatentVAE, load_vae


class Cancelled(Exception):
    """A callback returned False."""


Callback = Callable[[int, int], bool | None]  # (steps done, steps in all); False cancels the run


def usable_device(device=None) -> torch.device:
    """The named device; for None CUDA where there is one, else Apple's GPU, else the CPU.

    Raises:
        DeviceError: there is no such device here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch raises both for a device it lacks
        raise DeviceError(f"There is no device {device} here ({str(error).splitlines()[0]}).") from None


def load(
    path: str | Path,
    device=None,
    dtype: torch.dtype | None = None,
    vae: str | Path | None = None,
    weight_dtype: str | None = None,
):
    """Loads a checkpoint of either family.

    Args:
        path: a published or converted folder, or a single .safetensors file.
        device: None picks the best there is. A GPU gets what draws; what reads pictures and writes text follows when
            `describe` is first called.
        dtype: weights and arithmetic; None keeps the file's.
        vae: JanusFlow's VAE, a diffusers folder or sdxl_vae.safetensors; needed for pictures, not for latents.
        weight_dtype: "int8" or "fp8_e4m3fn" keeps the language model's linear layers in half of bfloat16's memory;
            arithmetic stays in `dtype`.

    Returns:
        JanusPipeline or JanusFlowPipeline.

    Raises:
        CheckpointError: the checkpoint or the VAE cannot be used.
    """
    checkpoint = read_checkpoint(path)
    device = usable_device(device)
    dtype = dtype or checkpoint.dtype
    if weight_dtype:
        checkpoint = quantized(checkpoint, weight_dtype)
    operations = cpu if device.type == "cpu" and cpu.available(dtype) else torch.nn
    if quantized_layers(checkpoint.tensors):
        operations = operations_over(operations)
    model = build_model(checkpoint, operations, dtype=dtype, device=device, idle_device="cpu")
    prompts = PromptEncoder.of(checkpoint)
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype  # picture decoders overflow in float16
    if checkpoint.family == JanusFlow.family:
        vae = None if vae is None else load_vae(vae, device, vae_dtype)
        return JanusFlowPipeline(model, prompts, device, dtype, vae)
    return JanusPipeline(model, prompts, device, dtype, build_vq(checkpoint, dtype=vae_dtype, device=device))


class Pipeline:
    """What both families do: describe pictures."""

    def __init__(self, model, prompts: PromptEncoder, device: torch.device, dtype: torch.dtype):
        self.model, self.prompts, self.device, self.dtype = model, prompts, device, dtype

    @property
    def image_size(self) -> int:
        """Native side of a picture, in pixels."""
        return self.model.params.siglip.image_size

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [L] to embeddings [1, L, hidden]."""
        table = self.model.llama.embed_tokens.weight.device
        return self.model.embed_text(ids.to(table), self.dtype)[None].to(self.device)

    @torch.inference_mode()
    def describe(
        self,
        images,
        question: str = "Describe this picture.",
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> list[str]:
        """Answers a question about pictures.

        Args:
            images: a Pillow picture, or a list with one entry per answer; an entry may itself be a list of pictures
                that the question is about together (every entry with as many).
            temperature: 0 writes the most likely answer.

        Returns:
            One answer per entry, as the model writes it.

        Raises:
            PromptError, ImageError, SamplingError, Cancelled.
        """
        entries = images if isinstance(images, (list, tuple)) else [images]
        entries = [entry if isinstance(entry, (list, tuple)) else [entry] for entry in entries]
        if not entries or not entries[0] or len({len(entry) for entry in entries}) != 1:
            raise ImageError("There must be a picture to describe, and the same number of pictures for every answer.")
        with torch.inference_mode(False):
            self.model.to(self.device)  # some weights are idle while only drawing
        pixels = torch.stack([image.understanding_pixels(p, self.image_size) for entry in entries for p in entry])
        asked = self.prompts.question_ids(question, self.model.params.siglip.tokens, len(entries[0]))
        embeds = question_embeds(
            self.model, asked, self.model.embed_pictures(pixels.to(self.device, self.dtype)), self.dtype
        )
        steps = text.sample_steps(
            self.model,
            embeds,
            max_new_tokens,
            self.prompts.eos,
            choice=Choice(temperature=temperature, top_p=top_p),
            seed=seed,
        )
        for ids in steps:
            _report(callback, ids.shape[1], max_new_tokens)
        return [self.prompts.decode(text.strip_end(row, self.prompts.eos)) for row in ids]


class JanusPipeline(Pipeline):
    """Janus and Janus-Pro. Latents are token latents: float32 codebook vectors [B, 8, h, w]."""

    def __init__(self, model, prompts, device, dtype, vq):
        super().__init__(model, prompts, device, dtype)
        self.vq = vq
        self.codebook = model.codebook.to(device)

    def sides(self, prompt: str, negative_prompt: str = ""):
        """Embeddings of a prompt and its negative [1, L, hidden]; an empty negative is the unconditional row."""
        ids = self.prompts.generation_ids(prompt)
        if negative_prompt.strip():
            negative = self.prompts.generation_ids(negative_prompt)
        else:
            negative = self.prompts.unconditional_ids(len(ids))
        return self.embed(ids), self.embed(negative)

    @torch.inference_mode()
    def __call__(self, prompt: str, **settings) -> list[Image.Image]:
        """Draws pictures; the arguments are those of `generate_tokens`."""
        return self.decode(self.generate_latents(prompt, **settings))

    def generate_latents(self, prompt: str, *, size: tuple[int, int] | None = None, **settings) -> torch.Tensor:
        """Samples token latents, float32 [num_images, 8, h, w]; the arguments are those of `generate_tokens`."""
        grid = self.grid(size)
        return tokens_to_latent(self.generate_tokens(prompt, size=size, **settings), self.codebook, grid)

    @torch.inference_mode()
    def generate_tokens(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        seed: int = 0,
        guidance: float = 5.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        size: tuple[int, int] | None = None,
        window: int = 1,
        cuda_graphs: bool = True,
        callback: Callback | None = None,
    ) -> torch.Tensor:
        """Samples picture tokens.

        Args:
            num_images: pictures of one prompt; picture k draws with seed + k, whatever the number.
            guidance: 0 to 100; 1 is none.
            guidance_interval: the fractions of the run between which guidance acts.
            temperature: 0 takes the most likely token at each place.
            top_k, top_p: restrict the choice; 0 and 1 do not.
            size: (width, height) in pixels, multiples of 16; the native size when None.
            window: positions guessed and computed in one pass; over 1 draws the same tokens in fewer passes.
            cuda_graphs: record the work of a token once and replay it, on an NVIDIA GPU and with a window of 1. What
                is replayed is checked against the plain work first.
            callback: called after every token with (done, all); returning False cancels.

        Returns:
            int64 [num_images, N] in raster order.

        Raises:
            PromptError, SamplingError, ImageError, Cancelled.
        """
        check_range("num_images", num_images, 1, 4096, whole=True)
        h, w = self.grid(size)
        positive, negative = self.sides(prompt, negative_prompt)
        steps = tokens.sample_steps(
            self.model,
            positive,
            negative,
            h * w,
            seed=seed,
            indices=range(num_images),
            cfg=guidance,
            cfg_interval=guidance_interval,
            choice=Choice(temperature, top_k, top_p),
            window=window,
            width=w,
            record=recorder(self.device) if cuda_graphs else None,
        )
        for step in steps:
            _report(callback, step.position + 1, h * w)
        return step.tokens

    def grid(self, size=None) -> tuple[int, int]:
        """Token rows and columns of a picture size in pixels, or of the native size."""
        width, height = size or (self.image_size, self.image_size)
        return _divided(height, self.vq.params.downscale), _divided(width, self.vq.params.downscale)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Pictures of token latents, one at a time to keep memory low."""
        return image.to_pictures(torch.cat([self.decode_pixels(latent[None]) for latent in latents]))

    @torch.inference_mode()
    def decode_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Token latents [B, 8, h, w] to float32 pixels [B, 3, H, W] around [-1, 1], not clamped."""
        return self.vq.decode(latents.to(self.device, self.vq_dtype)).float()

    @torch.inference_mode()
    def encode(self, picture: Image.Image) -> torch.Tensor:
        """The token latent [1, 8, h, w] of a picture, centre-cropped to multiples of 16 pixels."""
        pixels = image.crop_to_multiple(image.to_pixels(picture)[None], self.vq.params.downscale)
        return self.vq.encode(pixels.to(self.device, self.vq_dtype))

    def tokens_of(self, latents: torch.Tensor) -> torch.Tensor:
        """int64 [B, h * w], the nearest codebook entries of token latents."""
        return latent_to_tokens(latents.to(self.device), self.codebook)

    @property
    def vq_dtype(self) -> torch.dtype:
        return self.vq.post_quant_conv.weight.dtype


class JanusFlowPipeline(Pipeline):
    """JanusFlow. Latents are SDXL's, scaled by 0.13025: [B, 4, h, w]."""

    def __init__(self, model, prompts, device, dtype, vae: LatentVAE | None = None):
        super().__init__(model, prompts, device, dtype)
        self.vae = vae

    def sides(self, prompt: str, negative_prompt: str = "") -> tuple[flow.Prompt, flow.Prompt]:
        """The positive and the negative prompt; an empty negative is the unconditional row.

        The last token is left out: the time embedding takes its place. The unconditional row's pads are hidden.
        """
        ids = self.prompts.generation_ids(prompt)[:-1]
        positive = flow.Prompt(self.embed(ids), None)
        if negative_prompt.strip():
            return positive, flow.Prompt(self.embed(self.prompts.generation_ids(negative_prompt)[:-1]), None)
        pads = self.prompts.unconditional_ids(len(ids) + 1)[:-1]
        visible = torch.zeros(1, len(ids), dtype=torch.bool, device=self.device)
        visible[:, 0] = True
        return positive, flow.Prompt(self.embed(pads), visible)

    @torch.inference_mode()
    def __call__(self, prompt: str, **settings) -> list[Image.Image]:
        """Draws pictures; the arguments are those of `generate_latents`."""
        self._need_vae()
        return self.decode(self.generate_latents(prompt, **settings))

    @torch.inference_mode()
    def generate_latents(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        seed: int = 0,
        guidance: float = 2.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        steps: int = 30,
        size: tuple[int, int] | None = None,
        noise: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        denoise: float = 1.0,
        cuda_graphs: bool = True,
        callback: Callback | None = None,
    ) -> torch.Tensor:
        """Integrates the flow from noise, or from given latents.

        Args:
            num_images: pictures of one prompt.
            guidance: 0 to 100; 1 is none.
            guidance_interval: the fractions of the run between which guidance acts.
            steps: Euler steps, 1 to 10000.
            size: (width, height) in pixels, multiples of 16; the native size when None.
            noise: [num_images, 4, h, w] instead of `torch.randn` from `torch.manual_seed(seed)` on the CPU.
            latents: scaled latents [1 or num_images, 4, h, w] to start from (see `encode`), with `denoise` < 1.
            denoise: how much of the path is run; below 1 it starts from a blend of `latents` and noise.
            cuda_graphs: record the work of a step once and replay it, on an NVIDIA GPU. What is replayed is checked
                against the plain work first.
            callback: called after every step with (done, all); returning False cancels.

        Returns:
            float32 latents [num_images, 4, h, w].

        Raises:
            PromptError, SamplingError, ImageError, Cancelled.
        """
        check_range("num_images", num_images, 1, 4096, whole=True)
        check_range("seed", seed, 0, 2**64 - 1, whole=True)
        times = flow.flow_times(steps, denoise)
        if latents is None and denoise < 1:
            raise SamplingError("A denoise below 1 needs latents to start from.")
        channels, side = self.model.params.uvit.latent_channels, self.model.params.uvit.stride
        for given in (latents, noise):
            if given is not None:
                self._check_latents(given, channels, side)
        if noise is None:
            width, height = size or (self.image_size, self.image_size)
            h, w = (_divided(s, VAE_DOWNSCALE * side) * side for s in (height, width))
            if latents is not None:
                h, w = latents.shape[-2:]
            generator = torch.Generator("cpu").manual_seed(seed)
            noise = torch.randn(num_images, channels, h, w, generator=generator)
        z = noise.to(self.device, torch.float32)
        if latents is not None:
            z = times[0] * latents.to(z) + (1 - times[0]) * z
        velocity = flow.guided_velocity(
            self.model,
            *self.sides(prompt, negative_prompt),
            z,
            guidance,
            guidance_interval,
            recorder(self.device) if cuda_graphs else None,
        )
        for step in flow.sample_steps(lambda z, t: velocity(z.to(self.dtype), t).float(), z, times):
            _report(callback, step.step + 1, steps)
        return step.z

    @staticmethod
    def _check_latents(latents: torch.Tensor, channels: int, side: int):
        if latents.dim() != 4 or latents.shape[1] != channels or any(s % side for s in latents.shape[2:]):
            raise ImageError(
                f"Latents of shape {list(latents.shape)} do not fit: they need {channels} channels and sides that are "
                f"multiples of {side}."
            )

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Pictures of scaled latents, one at a time to keep memory low."""
        vae = self._need_vae()
        return image.to_pictures(torch.cat([vae.decode(latent[None]) for latent in latents]))

    @torch.inference_mode()
    def encode(self, picture: Image.Image) -> torch.Tensor:
        """Scaled latents [1, 4, h, w] of a picture, centre-cropped to multiples of 16 pixels."""
        multiple = VAE_DOWNSCALE * self.model.params.uvit.stride
        return self._need_vae().encode(image.crop_to_multiple(image.to_pixels(picture)[None], multiple))

    def _need_vae(self) -> LatentVAE:
        if self.vae is None:
            raise SamplingError(
                "JanusFlow needs the SDXL VAE for pictures: give its file as vae=… or --vae (`python -m janus_core "
                "download --vae` fetches it)."
            )
        return self.vae


def _divided(side: int, multiple: int) -> int:
    if not isinstance(side, int) or side < multiple or side % multiple:
        raise ImageError(f"A side of {side} pixels is not a multiple of {multiple}.")
    return side // multiple


def _report(callback: Callback | None, done: int, total: int):
    if callback is not None and callback(done, total) is False:
        raise Cancelled(f"Cancelled after {done} of {total} steps.")
