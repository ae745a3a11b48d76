"""The templates: what each graph does, its scene and its note."""

from .graph import Template
from .notes import DEMO, FLOW_LINK, WHERE, official

PRO, FLOW, VAE = "demo/janus-pro-demo", "demo/janusflow-demo", "janusflow-demo-vae.safetensors"
LORA = "janus-pro-demo-night.safetensors"
SIZE = 128  # of the demo models' images


def note(title: str, *text: str, pro: bool = False, flow: bool = False) -> str:
    """A note: heading, what the template does, the demo models, the official weights."""
    return "\n\n".join((f"## {title}", *text, DEMO, official(pro, flow)))


class Builder(Template):
    """A template with the chains that several templates share."""

    def load_pro(self):
        self.pro = self.add("JanusProLoader", model_name=PRO)

    def load_flow(self):
        self.flow = self.add("JanusFlowLoader", model_name=FLOW)
        self.vae = self.add("VAELoader", vae_name=VAE)

    def empty(self, count: int = 1):
        self.latent = self.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=count)["LATENT"]

    def prompt(self, loader, text, **more):
        return self.add("JanusPromptEncode", clip=loader["CLIP"], text=text, **more)

    def sample_pro(self, prompt, latent=None, model=None, **more):
        return self.add("JanusTokenSampler", model=model or self.pro["MODEL"], positive=prompt["positive"],
                        negative=prompt["negative"], latent_image=latent or self.latent, **more)["LATENT"]  # fmt: skip

    def sample_flow(self, prompt, latent=None, **more):
        return self.add("JanusFlowSampler", model=self.flow["MODEL"], positive=prompt["positive"],
                        negative=prompt["negative"], latent_image=latent or self.latent, **more)["LATENT"]  # fmt: skip

    def decode(self, latent, loader, column=None):
        return self.add("VAEDecode", column, samples=latent, vae=loader["VAE"])["IMAGE"]

    def save(self, images, prefix, column=None, title=None, **more):
        return self.add("SaveImage", column, title, images=images, filename_prefix=prefix, **more)


def janus_pro_text_to_image(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty()
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, t.scene)
    t.group("Sample", 2)
    latent = t.sample_pro(prompt)
    t.group("Decode", 3, 4)
    t.save(t.decode(latent, t.pro), "Janus-Pro", 4)
    t.note(
        note(
            "Janus-Pro: text to image",
            "Janus-Pro generates an image token by token. **cfg** 5 and **temperature** 1 are the original settings. "
            "Image *k* of a batch is the image of seed + *k*.",
            pro=True,
        ),
        0, 1,
    )  # fmt: skip


def janusflow_text_to_image(t: Builder):
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


def janusflow_stock_samplers(t: Builder):
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
            "Above, **KSampler** with `euler` and `simple`: the image of the original implementation, up to rounding, "
            "for every step count that divides 3000. Below, **SamplerCustom** with **JanusFlow Scheduler**: exact for "
            "every step count. The same seed gives the same image in both.",
            flow=True,
        ),
        0, 2,
    )  # fmt: skip


def janusflow_image_to_image(t: Builder):
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


def upper_half(t: Builder, *columns: int):
    """A group that makes a mask of the image's upper half."""
    t.group("Mask", *columns)
    whole, half = (
        t.add("SolidMask", value=value, width=SIZE, height=height)["MASK"]
        for value, height in ((0, SIZE), (1, SIZE // 2))
    )
    return t.add("MaskComposite", columns[1], destination=whole, source=half, operation="add")["MASK"]


def janusflow_inpaint(t: Builder):
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


def janus_pro_inpaint(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty()
    t.group("Prompt", 1)
    first = t.prompt(t.pro, "a blue triangle above an orange circle on a black background")
    second = t.prompt(t.pro, t.scene)
    t.group("Sample", 2)
    before = t.sample_pro(first)
    mask = upper_half(t, 0, 1)
    t.group("Mask latent", 3)
    masked = t.add("SetLatentNoiseMask", samples=before, mask=mask)["LATENT"]
    t.group("Resample", 4)
    after = t.sample_pro(second, masked)
    t.group("Decode", 5, 6)
    t.save(t.decode(before, t.pro), "Janus-Pro-before", 6, "Before")
    t.save(t.decode(after, t.pro), "Janus-Pro-after", 6, "After")
    t.note(
        note(
            "Janus-Pro: inpainting",
            "Only the tokens under the mask are resampled, here the upper half; the others stay the same. A new token "
            "sees the tokens before it in reading order, so the prompt should describe the whole image. For an image "
            "of your own, replace the first sampler by **Load Image** and **VAE Encode**.",
            pro=True,
        ),
        2, 4, top=700,
    )  # fmt: skip


def describe_image(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty()
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, t.scene)
    t.group("Sample", 2)
    latent = t.sample_pro(prompt)
    t.group("Decode", 3)
    image = t.decode(latent, t.pro)
    t.group("Describe", 4, 5)
    answer = t.add("JanusDescribeImage", clip=t.pro["CLIP"], image=image, question="Describe this image.")["answer"]
    t.save(image, "Janus-Pro", 4)
    t.add("PreviewAny", 5, source=answer)
    t.note(
        note(
            "Janus-Pro: describe an image",
            "The model that generates images also answers questions about them, one answer for each image of a batch. "
            "To ask about an image of your own, replace the sampler by **Load Image**. **Load JanusFlow** works too.",
            pro=True,
        ),
        0, 2,
    )  # fmt: skip


def caption_dataset(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty(4)
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, t.scene)
    t.group("Sample", 2)
    latent = t.sample_pro(prompt)
    t.group("Decode", 3)
    images = t.decode(latent, t.pro)
    t.group("Describe", 4, 5)
    each = t.add("RebatchImages", title="One by one", images=images, batch_size=1)["IMAGE"]
    answers = t.add("JanusDescribeImage", 5, clip=t.pro["CLIP"], image=each, question="Describe this image.")["answer"]
    t.save(images, "Janus-Pro")
    t.group("Save", 6)
    t.add("SaveImageTextDataSetToFolder", images=each, texts=answers, folder_name="janus-captions")
    t.add("PreviewAny", source=answers)
    t.note(
        note(
            "Captions for a dataset",
            "Every image is described and saved with its caption in a `.txt` file beside it, in "
            "`output/janus-captions`: the layout that LoRA training reads. To caption your own images, use **Janus "
            "Caption Folder**: it writes captions beside the images of an input folder, skips images that have one, "
            "and resumes where it was cancelled.",
            pro=True,
        ),
        0, 3,
    )  # fmt: skip


def compare(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.load_flow()
    t.empty()
    t.group("Prompt", 1, 2)
    text = t.add("PrimitiveStringMultiline", title="Prompt", value=t.scene)["STRING"]
    pro_prompt, flow_prompt = (
        t.add("JanusPromptEncode", 2, clip=loader["CLIP"], text=text) for loader in (t.pro, t.flow)
    )
    t.group("Sample", 3)
    pro, flow = t.sample_pro(pro_prompt), t.sample_flow(flow_prompt)
    t.group("Decode", 4, 5)
    t.save(t.decode(pro, t.pro), "Janus-Pro", 5, "Janus-Pro")
    t.save(t.decode(flow, t.vae), "JanusFlow", 5, "JanusFlow")
    t.note(
        note(
            "Both families, side by side",
            "One prompt for both: Janus-Pro above, JanusFlow below.",
            pro=True, flow=True,
        ),
        0, 3,
    )  # fmt: skip


def refine_with_janusflow(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.load_flow()
    t.empty()
    t.group("Prompt", 1)
    pro_prompt, flow_prompt = t.prompt(t.pro, t.scene), t.prompt(t.flow, t.scene)
    t.group("Sample", 2)
    latent = t.sample_pro(pro_prompt)
    t.group("Encode", 3, 4)
    draft = t.add("VAEDecode", box_width=160, samples=latent, vae=t.pro["VAE"])["IMAGE"]
    encoded = t.add("VAEEncode", 4, box_width=160, space=100, pixels=draft, vae=t.vae["VAE"])["LATENT"]
    t.group("Refine", 5)
    refined = t.sample_flow(flow_prompt, encoded, denoise=0.4)
    t.group("Decode", 6, 7)
    image = t.add("VAEDecode", box_width=160, samples=refined, vae=t.vae["VAE"])["IMAGE"]
    t.save(draft, "Janus-Pro-draft", 7, "Draft", space=100)
    t.save(image, "Janus-refined", 7, "Refined")
    t.note(
        note(
            "A Janus-Pro image, refined by another model",
            "Janus-Pro generates an image, a VAE encodes it for a diffusion model, and that model refines it with a "
            "**denoise** below 1. Here this is JanusFlow; any stock model with its own VAE works the same way.",
            pro=True, flow=True,
        ),
        2, 5,
    )  # fmt: skip


def upscale(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty()
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, t.scene)
    t.group("Sample", 2)
    latent = t.sample_pro(prompt)
    t.group("Decode", 3)
    image = t.decode(latent, t.pro)
    t.group("Upscale", 4, 5)
    larger = t.add("ImageScaleBy", image=image, upscale_method="lanczos", scale_by=2)["IMAGE"]
    t.save(larger, "Janus-Pro-x2", 5)
    t.note(
        note(
            "A larger image",
            "Both families were trained at one size. A stock node enlarges the image; **Upscale Image (using Model)** "
            "with an upscale model of your choice can take its place.",
            pro=True,
        ),
        0, 2,
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
                f"The demo models cannot do this. It needs the official weights of {FLOW_LINK} (run `python -m "
                f"janus_core download janusflow-1.3b` {WHERE}), and a checkpoint such as [{checkpoint}]({hub}) in "
                "`models/checkpoints`.",
            )
        ),
        2, 4,
    )  # fmt: skip


def caption_to_prompt(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.load_flow()
    t.group("Image", 0, 1)
    canvas = t.add("EmptyImage", title="Background", width=SIZE, height=SIZE, color=0x28A03C)["IMAGE"]
    square = t.add("EmptyImage", title="Square", width=46, height=46, color=0xF5F5F5)["IMAGE"]
    image = t.add("ImageCompositeMasked", 1, destination=canvas, source=square, x=41, y=41)["IMAGE"]
    t.group("Describe", 2)
    answer = t.add("JanusDescribeImage", clip=t.pro["CLIP"], image=image, question="Describe this image.")["answer"]
    t.group("Prompt", 3)
    prompt = t.add("JanusPromptEncode", clip=t.flow["CLIP"], text=answer)
    t.empty()
    t.group("Sample", 4)
    latent = t.sample_flow(prompt)
    t.group("Decode", 5, 6)
    t.save(image, "image", 6, "Described")
    t.save(t.decode(latent, t.vae), "JanusFlow", 6, "Generated")
    t.group("Description", 3)
    t.add("PreviewAny", source=answer)
    t.note(
        note(
            "A description as another model's prompt",
            "Janus-Pro describes an image, and another model generates from that description: here JanusFlow; with a "
            "**CLIP Text Encode** in place of **Janus Prompt (CFG)**, any model. To describe an image of your own, put "
            "**Load Image** in place of **Image Composite Masked**.",
            pro=True, flow=True,
        ),
        2, 4,
    )  # fmt: skip


def lora(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty()
    t.group("LoRA", 1)
    patched = t.add("LoraLoaderModelOnly", model=t.pro["MODEL"], lora_name=LORA, strength_model=1)["MODEL"]
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, t.scene)
    t.group("Sample", 2)
    plain = t.sample_pro(prompt, seed=0, control_after_generate="fixed")
    changed = t.sample_pro(prompt, model=patched, seed=0, control_after_generate="fixed")
    t.group("Decode", 3, 4)
    t.save(t.decode(plain, t.pro), "Janus-Pro", 4, "Without")
    t.save(t.decode(changed, t.pro), "Janus-Pro-LoRA", 4, "With the LoRA")
    t.note(
        note(
            "Janus-Pro with a LoRA",
            "The stock **Load LoRA** patches Janus-Pro as it does any model. The demo LoRA turns every background "
            "black; **strength** sets how much. LoRAs that peft or `python -m janus_core train` wrote go into "
            "`models/loras`.",
            pro=True,
        ),
        0, 1,
    )  # fmt: skip


def contact_sheet(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty(9)
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, "a triangle")
    t.group("Sample", 2)
    latent = t.sample_pro(prompt, seed=100, cfg=1, control_after_generate="fixed")
    t.group("Decode", 3)
    images = t.decode(latent, t.pro)
    t.group("Contact sheet", 4, 5)
    sheet = t.add("ImageGrid", images=images, columns=3, cell_width=SIZE, cell_height=SIZE)["images"]
    t.save(sheet, "Janus-Pro-sheet", 5, "Seeds 100 to 108")
    t.note(
        note(
            "Nine seeds on one sheet",
            "In a batch, image *k* is generated with seed + *k*, counted from 0 in reading order. To get one of them "
            "alone, set **seed** to its seed and **batch_size** to 1: the image is the same. A prompt that leaves much "
            "open, and **cfg** 1, give the most variety; 5 follows the prompt more closely.",
            pro=True,
        ),
        0, 2,
    )  # fmt: skip


TEMPLATES = {
    "Janus-Pro - Text to Image": (janus_pro_text_to_image, "a red circle on a blue background"),
    "Janus-Pro - Inpaint": (janus_pro_inpaint, "a yellow cross above an orange circle on a black background"),
    "Janus-Pro - Describe Image": (describe_image, "a black square on a yellow background"),
    "Janus-Pro - Caption a Dataset": (caption_dataset, "a large yellow cross on a purple background"),
    "Janus-Pro - Caption to Prompt": (caption_to_prompt, "a white square on a green background"),
    "Janus-Pro - LoRA": (lora, "a yellow triangle on a white background"),
    "Janus-Pro - Batch Contact Sheet": (contact_sheet, None),
    "Janus-Pro - Upscale": (upscale, "a green cross on a white background"),
    "Janus-Pro - Refine with JanusFlow": (refine_with_janusflow, "a blue triangle on an orange background"),
    "Janus-Pro and JanusFlow - Compare": (compare, "a white circle above a green square on a red background"),
    "JanusFlow - Text to Image": (janusflow_text_to_image, "a white cross on a purple background"),
    "JanusFlow - KSampler and SamplerCustom": (janusflow_stock_samplers, "an orange triangle on a green background"),
    "JanusFlow - Image to Image": (janusflow_image_to_image, "a green square on a yellow background"),
    "JanusFlow - Inpaint": (janusflow_inpaint, "a blue triangle above a yellow circle on a white background"),
    "JanusFlow - Refine with SDXL": (refine_with_sdxl, None),
}


def templates(schema: dict):
    """Every template, built."""
    for name, (build, scene) in TEMPLATES.items():
        template = Builder(name, schema, scene)
        build(template)
        yield template
