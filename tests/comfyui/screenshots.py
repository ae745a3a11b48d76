"""The images of the help pages and of README: `python tests/comfyui/screenshots.py [NODE …|hero]`.

Needs ComfyUI, Playwright and Chromium, as test_browser.py does. The nodes are shown without the badge of their pack.
README's image is the text-to-image graph in the browser, above images of the demo model.
"""

import io
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from editor import editor  # noqa: E402
from graphs import outputs_of, token_graph  # noqa: E402
from help_tables import DOCS, NODES  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from benchmarks import ROOT  # noqa: E402
from benchmarks.comfyui_server import Server, find_comfyui  # noqa: E402

SETTINGS = {
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.NodeBadge.NodeIdBadgeMode": "None",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.TutorialCompleted": True,
}
TEXTS = {  # of a node's first text input; other nodes show their default
    "JanusPromptEncode": "a red circle on a blue background",
    "JanusDescribeImage": "What colour is the circle?",
    "JanusImagePrompt": "make the circle green",
    "JanusThink": "a red circle above a blue square",
    "JanusReflect": "a red circle above a blue square",
}
PROMPTS = (
    "a red circle on a blue background",
    "a white circle left of a black square on a red background",
    "a small yellow cross on a black background",
    "a green cross above a yellow circle on a purple background",
    "a small blue triangle right of a large orange cross on a white background",
)
MARGIN, TITLE = 16, 30  # pixels around a node, and its title bar
ADD = """async (nodes) => {
    const graph = window.app.graph
    graph.clear()
    for (const [k, [type, text]] of nodes.entries()) {  // side by side: ids of a cleared graph would keep their values
        const node = window.LiteGraph.createNode(type)
        node.pos = [2000 * k, 0]
        graph.add(node)
        node.setSize([Math.max(node.size[0], 330), Math.max(node.size[1], node.computeSize()[1] + 60)])
        const widget = node.widgets?.find((w) => w.type === 'customtext')
        if (text && widget) widget.value = text
    }
}"""
SHOW = """async (k) => {
    const canvas = window.app.canvas, node = window.app.graph._nodes[k]
    canvas.ds.scale = 1
    canvas.ds.offset = [400 - node.pos[0], 200 - node.pos[1]]
    canvas.setDirty(true, true)
    await new Promise((done) => setTimeout(done, 2000))
    return [node.size[0], node.size[1]]
}"""
HERO = """async (prompt) => {
    const graph = window.app.graph, canvas = window.app.canvas
    graph.clear()
    const make = (type, x, y, width, height) => {
        const node = window.LiteGraph.createNode(type)
        node.pos = [x, y]
        graph.add(node)
        node.setSize([width, height ?? node.computeSize()[1]])
        return node
    }
    const set = (node, name, value) => { node.widgets.find((w) => w.name === name).value = value }
    const loader = make('JanusProLoader', 0, 0, 270)
    const latent = make('EmptyLatentImage', 0, 170, 270)
    const text = make('JanusPromptEncode', 310, 0, 300, 300)
    const sampler = make('JanusTokenSampler', 650, 0, 260)
    const decode = make('VAEDecode', 950, 0, 300)
    const shown = make('PreviewImage', 950, 90, 300, 300)
    set(loader, 'model_name', 'demo/janus-pro-demo')
    set(latent, 'width', 128)
    set(latent, 'height', 128)
    set(text, 'text', prompt)
    loader.connect(1, text, 'clip')
    loader.connect(0, sampler, 'model')
    text.connect(0, sampler, 'positive')
    text.connect(1, sampler, 'negative')
    latent.connect(0, sampler, 'latent_image')
    sampler.connect(0, decode, 'samples')
    loader.connect(2, decode, 'vae')
    decode.connect(0, shown, 'images')
    canvas.ds.scale = 1
    canvas.ds.offset = [100, 150]
    window.app.queuePrompt(0)
    const wait = (ms) => new Promise((done) => setTimeout(done, ms))
    for (let k = 0; k < 240 && !shown.imgs?.length; k++) await wait(500)
    await wait(8000)  // until the messages about the run have disappeared
    canvas.setDirty(true, true)
    await wait(1000)
    return 400
}"""


def shot(page, x, y, width, height) -> Image.Image:
    png = page.screenshot(clip={"x": x, "y": y, "width": width, "height": height})
    return Image.open(io.BytesIO(png)).convert("RGB")


def node_images(page, names: list[str]):
    page.evaluate(ADD, [[name, TEXTS.get(name)] for name in names])
    for k, name in enumerate(names):
        width, height = page.evaluate(SHOW, k)
        image = shot(page, 400 - MARGIN, 200 - TITLE - MARGIN, width + 2 * MARGIN, height + TITLE + 2 * MARGIN)
        image.save(DOCS / "images" / f"{name}.jpg", quality=88)


def hero(page, server):
    height = page.evaluate(HERO, PROMPTS[0])
    graph = shot(page, 100 - 15, 150 - TITLE - 15, 1280, height + TITLE + 30)
    side = graph.width // len(PROMPTS)
    whole = Image.new("RGB", (graph.width, graph.height + side))
    whole.paste(graph, (0, 0))
    for k, text in enumerate(PROMPTS):
        prompt, _ = token_graph(text=text, temperature=1.0, seed=k, size=128, name="demo/janus-pro-demo")
        outputs = server.run(prompt)
        file = server.file(outputs[outputs_of(prompt, "SaveImage")[0]]["images"][0])
        whole.paste(
            Image.open(file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (k * side, graph.height)
        )
    whole.save(ROOT / "docs" / "hero.jpg", quality=88)


def main():
    wanted = sys.argv[1:] or [*NODES, "hero"]
    with tempfile.TemporaryDirectory() as base, sync_playwright() as playwright:
        (Path(base) / "input" / "my-images").mkdir(parents=True)
        server = Server(find_comfyui(), Path(base), {}, ("--cpu",), threads=1)
        try:
            with editor(playwright, server.port) as page:
                page.keyboard.press("Escape")
                for pair in SETTINGS.items():
                    page.evaluate("(pair) => window.app.extensionManager.setting.set(...pair)", list(pair))
                node_images(page, [name for name in wanted if name != "hero"])
                if "hero" in wanted:
                    hero(page, server)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
