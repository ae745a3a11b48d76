"""Templates and blueprints in the real frontend: opened from its dialogs, legible, queued, judged and restored.

Needs Playwright and Chromium ($CHROMIUM or on the path), otherwise the tests are skipped. Screenshots of the finished
graphs are saved to $JANUS_SCREENSHOTS, if set.
"""

import os
import time
from itertools import combinations
from pathlib import Path

import pytest
from editor import editor, find_chromium
from graphs import outputs_of
from judged import shows
from PIL import Image
from templates.catalogue import TEMPLATES, WITHOUT_DEMO
from templates.layout import Box
from workflow_files import NOTES, ROOT, TWINS, WORKFLOWS, read

MIN_ZOOM = 0.6  # ComfyUI hides all text below 0.57
NAMES = [path.stem for path in WORKFLOWS]


@pytest.fixture(scope="module")
def page(start):
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    if find_chromium() is None:
        pytest.skip("no Chromium ($CHROMIUM or on the path)")
    server = start()
    with playwright.sync_playwright() as p, editor(p, server.port) as page:
        page.server = server
        yield page


def open_template(page, name: str):
    """Opens a template as a user does: the Templates dialog, the pack, the card."""
    page.keyboard.press("Escape")
    page.evaluate("window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog").last
    dialog.get_by_text("janus", exact=True).first.click()
    card = dialog.get_by_text(name, exact=True).first
    card.scroll_into_view_if_needed()
    card.click()
    page.wait_for_function("(type) => window.app.graph._nodes.some((n) => n.type === type)", arg="MarkdownNote")
    page.wait_for_timeout(1500)


def live_nodes(page) -> dict[int, dict]:
    """The nodes on the canvas by id, as the frontend would save them."""
    return {node["id"]: node for node in page.evaluate("window.app.graph.serialize().nodes")}


def screenshot(page, name: str):
    if os.environ.get("JANUS_SCREENSHOTS"):
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(os.environ["JANUS_SCREENSHOTS"]) / f"{name}.png")


def queue(page) -> dict:
    """Queues the graph and returns its history entry."""
    before = set(page.server.get("/history"))
    page.evaluate("window.app.queuePrompt(0)")
    for _ in range(1200):
        for key, entry in page.server.get("/history").items():
            if key not in before and (entry["status"]["completed"] or entry["status"]["status_str"] == "error"):
                assert entry["status"]["status_str"] == "success", entry["status"]
                red = "window.app.graph._nodes.filter((n) => n.has_errors).map((n) => n.type)"
                assert page.evaluate(red) == [] and not page.evaluate("window.app.lastNodeErrors")
                return entry
        time.sleep(0.1)
    raise AssertionError("the queued graph did not end")


def sent(entry: dict) -> dict:
    """The API prompt of a history entry, without what the frontend adds for itself."""
    return {key: {k: node[k] for k in ("class_type", "inputs")} for key, node in entry["prompt"][2].items()}


def test_the_templates_are_offered(page):
    offered = page.server.get("/api/workflow_templates")
    assert set(offered["janus"]) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_template_in_the_browser(page, name):
    open_template(page, name)
    saved = {node["id"]: node for node in read(ROOT / "workflows" / f"{name}.json")["nodes"]}
    live = live_nodes(page)
    assert {key: node["type"] for key, node in live.items()} == {key: node["type"] for key, node in saved.items()}
    assert page.evaluate("window.app.canvas.ds.scale") >= MIN_ZOOM and not page.evaluate(
        "window.app.canvas.low_quality"
    )
    for key, node in live.items():
        assert list(node["pos"]) == list(saved[key]["pos"])
        assert all(a <= b + 1 for a, b in zip(node["size"], saved[key]["size"])), f"{node['type']} grew"
    shown = page.evaluate(
        """() => { const text = document.querySelector('.comfy-markdown .tiptap'), last = text.lastElementChild
                   return (last.offsetTop + last.offsetHeight) / text.parentElement.clientHeight }"""
    )
    assert 0.5 < shown <= 1, "the note is cut off, or much taller than its text"
    if name in WITHOUT_DEMO:
        screenshot(page, name)
        return

    before = {key: node for key, node in live.items() if node["type"] not in NOTES}
    entry = queue(page)
    prompt = sent(entry)
    assert prompt == read(TWINS / f"{name}.json")
    screenshot(page, name)
    images = entry["outputs"][outputs_of(prompt, "SaveImage")[-1]]["images"]
    if TEMPLATES[name].scene is not None:
        assert shows(Image.open(page.server.file(images[0])), TEMPLATES[name].scene)

    drop(page, images[0])
    restored = live_nodes(page)
    for key, node in before.items():
        for field in ("type", "pos", "size", *(["widgets_values"] if node["type"] != "PreviewAny" else [])):
            assert restored[key].get(field) == node.get(field), (node["type"], field)
    assert page.evaluate("window.app.graph.links.size ?? Object.keys(window.app.graph.links).length") == sum(
        isinstance(value, list) for node in prompt.values() for value in node["inputs"].values()
    )


def drop(page, entry: dict):
    """Drops a saved image on an empty canvas."""
    page.evaluate("window.app.graph.clear()")
    page.evaluate(
        """async (e) => {
            const query = new URLSearchParams({filename: e.filename, subfolder: e.subfolder, type: e.type})
            const blob = await (await fetch(`/api/view?${query}`)).blob()
            const data = new DataTransfer()
            data.items.add(new File([blob], e.filename, {type: 'image/png'}))
            const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
            document.getElementById('graph-canvas').dispatchEvent(event)
        }""",
        entry,
    )
    page.wait_for_function("window.app.graph._nodes.length > 0")
    page.wait_for_timeout(1000)


def settled_boxes(page) -> list:
    """[type, [x, y, width, height]] of each node that Nodes 2.0 shows, once all are there and do not change."""
    reads = [[]]
    while len(reads) < 100 and (not reads[-1] or any(boxes != reads[-1] for boxes in reads[-3:])):
        page.wait_for_timeout(250)
        boxes = page.evaluate(
            """() => [...document.querySelectorAll('[data-node-id]')].map((e) => {
                const node = window.app.graph.getNodeById(e.dataset.nodeId)
                return node && [node.type, [node.pos[0], node.pos[1] - 30, e.offsetWidth, e.offsetHeight]] })"""
        )
        if None in boxes or len(boxes) != page.evaluate("window.app.graph._nodes.length"):
            boxes = []  # the workflow before is still shown, or not all of this one
        reads.append(boxes)
    return reads[-1]


def test_no_overlaps_in_nodes_2(page):
    """The other renderer makes nodes larger than their saved size; they still do not overlap."""
    setting = "(value) => window.app.ui.settings.setSettingValue('Comfy.VueNodes.Enabled', value)"
    page.evaluate(setting, True)
    try:
        for name in NAMES:
            workflow = read(ROOT / "workflows" / f"{name}.json")
            page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
            boxes = settled_boxes(page)
            assert len(boxes) == len(workflow["nodes"])
            screenshot(page, f"nodes-2 {name}")
            for (a, first), (b, second) in combinations(boxes, 2):
                assert not Box(*first).overlaps(Box(*second)), (name, a, b)
    finally:
        page.evaluate(setting, False)


def node_search(page):
    """The node search, open. On a busy computer two clicks may be too far apart for a double click."""
    field = page.get_by_role("combobox", name="Add a node")
    for _ in range(10):
        page.mouse.dblclick(500, 300)
        page.wait_for_timeout(1500)
        if field.is_visible():
            break
        page.keyboard.press("Escape")
    return field


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json")))
def test_blueprint_in_the_browser(page, name):
    """A blueprint from the node search sends what its node shows, and the image is what the prompt says."""
    page.keyboard.press("Escape")
    page.evaluate("window.app.graph.clear()")
    node_search(page).fill(name)
    page.get_by_role("option").filter(has_text=name).first.click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.mouse.click(500, 300)
    page.wait_for_function("window.app.graph._nodes.length === 1")
    shown = dict(page.evaluate("window.app.graph._nodes[0].widgets.map((w) => [w.name, w.value])"))
    page.evaluate(
        """() => { const graph = window.app.graph, node = graph._nodes[0]
                   const save = window.LiteGraph.createNode('SaveImage')
                   graph.add(save); save.pos = [node.pos[0] + 500, node.pos[1]]; node.connect(0, save, 0) }"""
    )
    entry = queue(page)
    prompt = sent(entry)
    inputs = {key: value for node in prompt.values() for key, value in node["inputs"].items()}
    assert shown["text"] and {key: inputs[key] for key in shown if key != "seed"} == {
        key: value for key, value in shown.items() if key != "seed"
    }
    assert inputs["seed"] == 0
    (image,) = entry["outputs"][outputs_of(prompt, "SaveImage")[0]]["images"]
    assert shows(Image.open(page.server.file(image)), shown["text"])
    screenshot(page, name)
