"""Every template in the real frontend: opened as the Templates dialog does, it runs without missing nodes or errors.

Needs Playwright and Chromium ($CHROMIUM or on the path), otherwise the tests are skipped. Screenshots of the finished
graphs are saved to $JANUS_SCREENSHOTS, if set.
"""

import os
import shutil
import time
from pathlib import Path

import pytest
from workflow_files import WORKFLOWS

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]


@pytest.fixture(scope="module")
def page(start):
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium ($CHROMIUM or on the path)")
    server = start()
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1760, "height": 900})
        page.server = server
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_function("window.app && window.app.graph && window.app.extensionManager", timeout=60000)
        page.wait_for_timeout(3000)
        yield page
        browser.close()


def test_the_templates_are_offered(page):
    offered = page.server.get("/api/workflow_templates")
    assert set(offered["janus"]) == {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_template_in_the_browser(page, name):
    page.keyboard.press("Escape")
    missing = page.evaluate(
        """async (name) => {
            const answer = await fetch(`/api/workflow_templates/janus/${name}.json`)
            await window.app.loadGraphData(await answer.json(), true, true, name)
            await new Promise((done) => setTimeout(done, 1000))
            const nodes = window.app.graph._nodes
            return nodes.filter((n) => !(n.type in window.LiteGraph.registered_node_types)).map((n) => n.type)
        }""",
        name,
    )
    assert missing == []
    before = set(page.server.get("/history"))
    page.evaluate("window.app.queuePrompt(0)")
    entry = finished(page.server, before)
    assert entry["status"]["status_str"] == "success", entry["status"]
    red = "window.app.graph._nodes.filter((n) => n.has_errors).map((n) => n.type)"
    assert page.evaluate(red) == [] and not page.evaluate("window.app.lastNodeErrors")
    page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1500)
    folder = os.environ.get("JANUS_SCREENSHOTS")
    shot = page.screenshot(path=Path(folder) / f"{name}.png" if folder else None)
    assert len(shot) > 20000


def finished(server, before: set) -> dict:
    """Waits for the prompt that is not in `before` to end and returns its history entry."""
    for _ in range(1200):
        new = {key: entry for key, entry in server.get("/history").items() if key not in before}
        for entry in new.values():
            if entry["status"]["completed"] or entry["status"]["status_str"] == "error":
                return entry
        time.sleep(0.1)
    raise AssertionError("the queued template did not end")
