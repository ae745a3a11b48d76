"""The images of the templates in ComfyUI's dialog, made by running every template in a real ComfyUI."""

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from workflow_files import ROOT, TWINS, read

from benchmarks.comfyui_server import Server, find_comfyui

from .catalogue import TEMPLATES

SIZE = 384  # the dialog's cards are square
BAR = 64  # height of the line of text below an image
SHOWN_BY = {  # shown by another template's graph with this prompt, and a line of text
    "JanusFlow - Refine with SDXL": (
        "JanusFlow - Text to Image",
        "an orange circle on a black background",
        "JanusFlow, then SDXL",
    )
}
CLOSE_UP = {"Janus-Pro - Upscale"}


def make(names: list[str]):
    """Writes workflows/NAME.jpg for these templates, or for all. Needs ComfyUI (benchmarks.comfyui_server)."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH")
    with tempfile.TemporaryDirectory() as base:
        server = Server(comfyui, Path(base), {}, ("--cpu",))
        try:
            for name in names or TEMPLATES:
                path = ROOT / "workflows" / f"{name}.jpg"
                thumbnail(server, name).save(path, quality=85, optimize=True)
                print(path.relative_to(ROOT))
        finally:
            server.stop()


def thumbnail(server, name: str) -> Image.Image:
    """Runs a template on the demo models; what it saved and wrote as one square image."""
    source, text, line = SHOWN_BY.get(name, (name, None, None))
    prompt = read(TWINS / f"{source}.json")
    for node in prompt.values():
        if text is not None and node["class_type"] == "JanusPromptEncode":
            node["inputs"]["text"] = text
    outputs = server.run(prompt)
    saved = [outputs[key]["images"][0] for key, node in prompt.items() if node["class_type"] == "SaveImage"]
    images = [Image.open(server.file(entry)).convert("RGB") for entry in saved]
    written = [outputs[key]["text"][0] for key, node in prompt.items() if node["class_type"] == "PreviewAny"]
    if written and len(images) == 1:
        line = written[0].strip()
    if len(images) == 2:
        image = side_by_side(*images)
    else:
        (image,) = images
        image = cut(image, *((0.5, 0.5) if name in CLOSE_UP else (1, 1)))
    return with_line(image, line) if line else image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def cut(image: Image.Image, width: float, height: float) -> Image.Image:
    """The middle of an image, of these fractions of its size."""
    w, h = image.width * width, image.height * height
    left, top = (image.width - w) / 2, (image.height - h) / 2
    return image.crop((round(left), round(top), round(left + w), round(top + h)))


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """The middle halves of two images, with a gap."""
    out = Image.new("RGB", (SIZE, SIZE), "#202020")
    half = SIZE // 2 - 2
    for image, x in ((before, 0), (after, SIZE - half)):
        middle = cut(image, half / SIZE, 1)
        out.paste(middle.resize((half, SIZE), Image.Resampling.LANCZOS), (x, 0))
    return out


def with_line(image: Image.Image, line: str) -> Image.Image:
    """The image's middle with a line of text below."""
    out = Image.new("RGB", (SIZE, SIZE), "#202020")
    middle = cut(image, 1, (SIZE - BAR) / SIZE)
    out.paste(middle.resize((SIZE, SIZE - BAR), Image.Resampling.LANCZOS))
    canvas = ImageDraw.Draw(out)
    size = 26
    while canvas.textlength(line, font := ImageFont.load_default(size)) > SIZE - 24:
        size -= 1
    canvas.text((SIZE / 2, SIZE - BAR / 2), line, fill="white", font=font, anchor="mm")
    return out
