"""JanusFlow Sampler and JanusFlow Scheduler."""

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..janus_core.errors import SamplingError
from ..janus_core.sampling.flow import flow_times
from ..janus_core.sampling.settings import SEED, check_range
from ..janus_core.schema import check
from .flow_model import JanusFlowModel, flow_sigmas
from .guidance import with_interval
from .inputs import cfg_input, image_latent, interval_inputs, prompt_inputs, seed_input, with_samples

STEPS = dict(default=30, min=1, max=10000, tooltip="Euler steps. The paper uses 30.")
DENOISE = dict(
    default=1.0,
    min=0.0,
    max=1.0,
    step=0.01,
    tooltip="Below 1, sampling starts from the latent; lower values change it less.",
)


def sigmas_of(steps: int, denoise: float):
    """Uniform SIGMAS, exact for every step count; empty for a denoise of 0, as in stock schedulers.

    Raises:
        SamplingError: steps or denoise are out of range.
    """
    check_range("denoise", denoise, 0, 1)
    return flow_sigmas(flow_times(steps, denoise) if denoise > 0 else [])


class JanusFlowScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusFlowScheduler",
            display_name="JanusFlow Scheduler",
            category="Janus/sampling",
            description="JanusFlow's uniform steps as SIGMAS for SamplerCustom, exact for every step count (stock "
            "`simple` is exact for counts that divide 3000).",
            search_aliases=["janus", "deepseek", "sigmas", "scheduler"],
            inputs=[io.Int.Input("steps", **STEPS), io.Float.Input("denoise", **DENOISE)],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, steps, denoise) -> io.NodeOutput:
        return io.NodeOutput(sigmas_of(steps, denoise))


class JanusFlowSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusFlowSampler",
            display_name="JanusFlow Sampler",
            category="Janus/sampling",
            description="Generates images with JanusFlow as in the paper: uniform Euler steps with classifier-free "
            "guidance. KSampler and the custom samplers work as well.",
            search_aliases=["janus", "deepseek", "janus flow", "ksampler", "rectified flow"],
            inputs=[
                io.Model.Input("model", tooltip="From Load JanusFlow."),
                *prompt_inputs(),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Empty Latent Image at 384x384, or an image from VAE Encode (SDXL VAE) with denoise "
                    "below 1.",
                ),
                seed_input("The seed of the noise; KSampler makes the same noise from it."),
                io.Int.Input("steps", **STEPS),
                cfg_input(2.0, "Classifier-free guidance. The paper uses 2; 1 turns it off and is twice as fast."),
                io.Float.Input("denoise", **DENOISE),
                *interval_inputs("path from noise to image"),
            ],
            outputs=[io.Latent.Output(tooltip="An SDXL latent: decode it with VAE Decode and the SDXL VAE.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, seed, steps, cfg, denoise, cfg_start=0.0, cfg_end=1.0
    ) -> io.NodeOutput:
        if not isinstance(model.model, JanusFlowModel):
            raise SamplingError(
                "JanusFlow Sampler needs the MODEL of Load JanusFlow (for Janus-Pro use Janus Token Sampler)."
            )
        check("seed", seed, SEED, SamplingError)
        sigmas = sigmas_of(steps, denoise)
        model = with_interval(model, cfg, cfg_start, cfg_end)
        samples = comfy.sample.fix_empty_latent_channels(
            model, image_latent(latent_image), latent_image.get("downscale_ratio_spacial")
        )
        noise = comfy.sample.prepare_noise(samples, seed, latent_image.get("batch_index"))
        samples = comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            positive,
            negative,
            samples,
            noise_mask=latent_image.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return io.NodeOutput(with_samples(latent_image, samples))
