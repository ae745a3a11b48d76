"""Templates in which Janus-Pro and JanusFlow work together: each function builds one."""

from .builder import SIZE, Builder, note


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
        0, 2,
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
    encoded = t.add("VAEEncode", 4, box_width=160, space=310, pixels=draft, vae=t.vae["VAE"])["LATENT"]
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
    t.group("Description", 4)
    t.add("PreviewAny", source=answer)
    t.note(
        note(
            "A description as another model's prompt",
            "Janus-Pro describes an image, and another model generates from that description: here JanusFlow; with a "
            "**CLIP Text Encode** in place of **Janus Prompt (CFG)**, any model. To describe an image of your own, put "
            "**Load Image** in place of **Image Composite Masked**.",
            pro=True, flow=True,
        ),
        2, 3,
    )  # fmt: skip
