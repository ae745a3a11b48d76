"""Templates of Janus-Pro: each function builds one."""

from .builder import SIZE, Builder, note, upper_half

LORA = "janus-pro-demo-night.safetensors"


def text_to_image(t: Builder):
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


def inpaint(t: Builder):
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
            "Every image is described and saved with its caption in a **.txt** file beside it, in "
            "**output/janus-captions**: the layout that LoRA training reads. To caption your own images, use **Janus "
            "Caption Folder**: it writes captions beside the images of an input folder, skips images that have one, "
            "and resumes where it was cancelled.",
            pro=True,
        ),
        0, 3,
    )  # fmt: skip


def lora(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty()
    t.group("LoRA", 1)
    patched = t.add("LoraLoaderModelOnly", model=t.pro["MODEL"], lora_name=LORA, strength_model=1)["MODEL"]
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, "a yellow triangle on a white background")
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
            "black; **strength** sets how much. LoRAs that peft or **python janus_core train** wrote go into "
            "**models/loras**.",
            pro=True,
        ),
        0, 1,
    )  # fmt: skip


def contact_sheet(t: Builder):
    t.group("Load", 0)
    t.load_pro()
    t.empty(9)
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, "a circle on a blue background")
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
