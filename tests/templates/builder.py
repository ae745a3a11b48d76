"""The chains of nodes that several templates share."""

from .graph import Template
from .notes import DEMO, official

PRO, FLOW, VAE = "demo/janus-pro-demo", "demo/janusflow-demo", "janusflow-demo-vae.safetensors"
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


def upper_half(t: Builder, *columns: int):
    """A group that makes a mask of the image's upper half."""
    t.group("Mask", *columns)
    whole, half = (
        t.add("SolidMask", value=value, width=SIZE, height=height)["MASK"]
        for value, height in ((0, SIZE), (1, SIZE // 2))
    )
    return t.add("MaskComposite", columns[1], destination=whole, source=half, operation="add")["MASK"]
