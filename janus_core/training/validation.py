"""Images of given prompts and answers to given questions, made while a model trains."""

from pathlib import Path

import torch
from PIL import Image

from ..files import write_atomically, write_text
from ..image import open_image
from ..janusflow import JanusFlow
from ..pipeline import JanusFlowPipeline, JanusPipeline


class Validation:
    """Writes NNNNNN.png and NNNNNN.txt into a folder when it is called with the number of steps done.

    A call raises OutputError if a file cannot be written.

    Args:
        settings: `prompts`, `questions` (each an `image` file and a `question`), `seed`, `guidance`; all are optional.
        autoencoder: the VQ model of a Janus, or the LatentVAE of a JanusFlow. It is on the model's device only while
            images are decoded.

    Raises:
        ImageError: an image of a question cannot be read.
    """

    def __init__(self, model, prompts, autoencoder, settings: dict, folder: Path):
        self.model, self.prompts, self.autoencoder, self.folder = model, prompts, autoencoder, folder
        self.settings = {key: value for key, value in settings.items() if value is not None}
        self.questions = [(open_image(one["image"]), one["question"]) for one in self.settings.get("questions", ())]

    def __call__(self, done: int):
        texts = self.settings.get("prompts", ())
        settings = {key: value for key, value in self.settings.items() if key in ("seed", "guidance")}
        pipe = pipeline_of(self.model, self.prompts, self.autoencoder)
        with self._autocast(pipe.device):
            if texts:
                grid = image_grid([pipe(text, **settings)[0] for text in texts], columns=4)
                write_atomically(self.folder / f"{done:06}.png", lambda file: grid.save(file, format="PNG"))
            answers = [f"{question}\n{pipe.describe(image, question)[0]}\n" for image, question in self.questions]
        if answers:
            write_text(self.folder / f"{done:06}.txt", "\n".join(answers))
        move_autoencoder(self.autoencoder, "cpu")

    def _autocast(self, device):
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        return torch.autocast(device.type, torch.bfloat16, enabled=len(dtypes) > 1)


def pipeline_of(model, prompts, autoencoder):
    """A pipeline around a model that trains: on its device, in its embeddings' dtype."""
    weight = model.llama.embed_tokens.weight
    move_autoencoder(autoencoder, weight.device)
    kind = JanusFlowPipeline if model.family == JanusFlow.family else JanusPipeline
    return kind(model, prompts, weight.device, weight.dtype, autoencoder)


def move_autoencoder(autoencoder, device):
    """Moves a VQ model or a LatentVAE."""
    getattr(autoencoder, "vae", autoencoder).to(device)


def image_grid(images, columns: int, gap: int = 2) -> Image.Image:
    """Images of one size in rows on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for k, one in enumerate(images):
        grid.paste(one, (k % columns * (width + gap), k // columns * (height + gap)))
    return grid
