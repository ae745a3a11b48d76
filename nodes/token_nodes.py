"""Janus Token Sampler."""

from comfy_api.latest import io

from ..janus_core.sampling.settings import TokenSamplerSettings
from .guidance import check_guidance
from .inputs import cfg_input, interval_inputs, prompt_inputs, seed_input, temperature_input, top_p_input
from .token_sampling import sample


class JanusTokenSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusTokenSampler",
            display_name="Janus Token Sampler",
            category="Janus/sampling",
            description="Generates images with Janus or Janus-Pro, token by token. Image k of a batch is the image of "
            "seed + k at any batch size. With a noise mask, only the tokens under the mask are resampled.",
            search_aliases=["janus", "deepseek", "janus pro", "ksampler", "autoregressive", "sampler"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Janus-Pro."),
                *prompt_inputs(),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Size and batch: Empty Latent Image at 384x384. Or a token latent from VAE Encode with a "
                    "noise mask, to resample a part.",
                ),
                seed_input(
                    "Image k of a batch uses the random numbers of seed + k, on any device and at any batch size."
                ),
                cfg_input(
                    5.0,
                    "Classifier-free guidance. The paper uses 5; 1 turns it off, which computes one row per image "
                    "instead of two.",
                ),
                temperature_input(1.0, "The original implementation uses 1; 0 always takes the most likely token."),
                io.Int.Input(
                    "top_k",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="Sample from the k most likely tokens; 0 is off.",
                    advanced=True,
                ),
                top_p_input(
                    1.0, "Sample from the most likely tokens of this total probability; 1 is off.", advanced=True
                ),
                *interval_inputs("run"),
                io.Int.Input(
                    "window",
                    default=1,
                    min=1,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="The speculative (Jacobi) window: how many tokens are guessed and verified in one pass. "
                    "Above 1 gives the same image in fewer passes, which is faster where a pass over several tokens "
                    "takes little longer than a pass over one.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="A token latent: decode it with VAE Decode and the VAE of Load Janus-Pro. Another VAE, "
                    "such as SDXL's, ends in an error about channels."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        seed,
        cfg,
        temperature,
        top_k,
        top_p,
        cfg_start=0.0,
        cfg_end=1.0,
        window=1,
    ) -> io.NodeOutput:
        check_guidance(cfg, cfg_start, cfg_end)
        settings = TokenSamplerSettings(
            seed=seed,
            guidance=cfg,
            guidance_interval=(cfg_start, cfg_end),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            window=window,
        )
        return io.NodeOutput(sample(model, positive, negative, latent_image, settings))
