"""Templates of JanusFlow: each function builds one."""

from .builder import Builder, note, upper_half
from .notes import FLOW_COMMAND, FLOW_LINK, download


def text_to_image(t: Builder):
    t.group("Load", 0)
    t.load_flow()
    t.empty()
    t.group("Prompt", 1)
    prompt = t.prompt(t.flow, t.scene)
    t.group("Sample", 2)
    latent = t.sample_flow(prompt)
    t.group("Decode", 3, 4)
    t.save(t.decode(latent, t.vae), "JanusFlow", 4)
    t.note(
        note(
            "JanusFlow: text to image",
            "JanusFlow is a rectified-flow model. 30 Euler steps and **cfg** 2 are the settings of the paper.",
            flow=True,
        ),
        0, 1,
    )  # fmt: skip


def stock_samplers(t: Builder):
    t.group("Load", 0)
    t.load_flow()
    t.empty()
    t.group("Prompt", 1)
    prompts = [
        t.add("CLIPTextEncode", title=title, clip=t.flow["CLIP"], text=text)["CONDITIONING"]
        for title, text in ((None, t.scene), ("Negative (empty)", ""))
    ]
    sigmas = t.add("JanusFlowScheduler")["SIGMAS"]
    euler = t.add("KSamplerSelect", sampler_name="euler")["SAMPLER"]
    shared = {"model": t.flow["MODEL"], "positive": prompts[0], "negative": prompts[1], "latent_image": t.latent}
    t.group("Sample", 2)
    a = t.add("KSampler", steps=30, cfg=2, sampler_name="euler", scheduler="simple", seed=0,
              control_after_generate="fixed", **shared)["LATENT"]  # fmt: skip
    b = t.add("SamplerCustom", cfg=2, sampler=euler, sigmas=sigmas, noise_seed=0,
              control_after_generate="fixed", **shared)["output"]  # fmt: skip
    t.group("Decode", 3, 4)
    for latent, title in ((a, "KSampler"), (b, "SamplerCustom")):
        t.save(t.decode(latent, t.vae), f"JanusFlow-{title}", 4, title)
    t.note(
        note(
            "JanusFlow with stock samplers",
            "Above, **KSampler** with **euler** and **simple**: the image of the original implementation, up to "
            "rounding, for every step count that divides 3000. Below, **SamplerCustom** with **JanusFlow Scheduler**: "
            "exact for every step count. The same seed gives the same image in both.",
            flow=True,
        ),
        0, 2,
    )  # fmt: skip


def image_to_image(t: Builder):
    t.group("Load", 0)
    t.load_flow()
    t.empty()
    t.group("Prompt", 1)
    first, second = t.prompt(t.flow, "a purple square on an orange background"), t.prompt(t.flow, t.scene)
    t.group("Sample", 2)
    before = t.sample_flow(first)
    t.group("Change", 3)
    after = t.sample_flow(second, before, denoise=0.75)
    t.group("Decode", 4, 5)
    t.save(t.decode(before, t.vae), "JanusFlow-before", 5, "Before")
    t.save(t.decode(after, t.vae), "JanusFlow-after", 5, "After")
    t.note(
        note(
            "JanusFlow: image to image",
            "The second sampler changes the first one's image as another prompt says. **denoise** sets how much: at "
            "0.3 most of the image stays the same. For an image of your own, replace the first sampler by **Load "
            "Image** and **VAE Encode**.",
            flow=True,
        ),
        2, 3,
    )  # fmt: skip


def inpaint(t: Builder):
    t.group("Load", 0)
    t.load_flow()
    t.empty()
    t.group("Prompt", 1)
    first = t.prompt(t.flow, "a green cross above a yellow circle on a white background")
    second = t.prompt(t.flow, t.scene)
    t.group("Sample", 2)
    before = t.sample_flow(first)
    mask = upper_half(t, 0, 1)
    t.group("Mask latent", 3)
    masked = t.add("SetLatentNoiseMask", samples=before, mask=mask)["LATENT"]
    t.group("Resample", 4)
    after = t.sample_flow(second, masked)
    t.group("Decode", 5, 6)
    t.save(t.decode(before, t.vae), "JanusFlow-before", 6, "Before")
    t.save(t.decode(after, t.vae), "JanusFlow-after", 6, "After")
    t.note(
        note(
            "JanusFlow: inpainting",
            "The upper half is resampled, the lower half stays the same. **Set Latent Noise Mask** takes any mask, for "
            "example one painted in **Load Image**, whose image **VAE Encode** turns into a latent.",
            flow=True,
        ),
        2, 4, top=700,
    )  # fmt: skip


def refine_with_sdxl(t: Builder):
    checkpoint = "sd_xl_base_1.0.safetensors"
    hub = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0"
    models = [{"name": checkpoint, "url": f"{hub}/resolve/main/{checkpoint}", "directory": "checkpoints"}]
    text = "a lighthouse at dusk"
    t.group("Load", 0)
    t.flow = t.add("JanusFlowLoader", model_name="JanusFlow-1.3B")
    sdxl = t.add("CheckpointLoaderSimple", ckpt_name=checkpoint, properties={"models": models})
    t.latent = t.add("EmptyLatentImage", width=384, height=384, batch_size=1)["LATENT"]
    t.group("Prompt", 1)
    prompt = t.prompt(t.flow, text)
    positive, negative = (
        t.add("CLIPTextEncode", title=title, clip=sdxl["CLIP"], text=words)["CONDITIONING"]
        for title, words in (("SDXL prompt", text), ("SDXL negative", "blurry, low quality"))
    )
    t.group("Sample", 2)
    latent = t.sample_flow(prompt)
    t.group("Upscale", 3)
    larger = t.add("LatentUpscaleBy", samples=latent, upscale_method="bicubic", scale_by=2.67)["LATENT"]
    t.group("Refine", 4)
    refined = t.add("KSampler", model=sdxl["MODEL"], positive=positive, negative=negative, latent_image=larger,
                    steps=30, cfg=6, sampler_name="dpmpp_2m", scheduler="karras", denoise=0.4)["LATENT"]  # fmt: skip
    t.group("Decode", 5, 6)
    t.save(t.decode(latent, sdxl), "JanusFlow", 6, "JanusFlow")
    t.save(t.decode(refined, sdxl), "JanusFlow-SDXL", 6, "Refined by SDXL")
    t.note(
        "\n\n".join(
            (
                "## JanusFlow, refined by SDXL",
                "JanusFlow's latents are SDXL's, so a stock checkpoint refines them without decoding: **Upscale Latent "
                "By** brings 384x384 to 1024x1024, **KSampler** with a **denoise** of 0.4 adds detail, and the "
                "checkpoint's VAE decodes both. Any checkpoint made from SDXL works.",
                "The demo models cannot do this.",
                download(FLOW_LINK, FLOW_COMMAND),
                f"Then press **R**. The second model is a checkpoint such as [{checkpoint}]({hub}) in "
                "**models/checkpoints**.",
            )
        ),
        0, 1,
    )  # fmt: skip
