"""ComfyUI's editor in a headless Chromium, by Playwright."""

import os
import shutil
from contextlib import contextmanager

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]


def find_chromium() -> str | None:
    """$CHROMIUM, else the first on the path."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def editor(playwright, port: int):
    """A page with the editor of the server at `port`, ready to use."""
    browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
    try:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("window.app && window.app.graph && window.app.extensionManager", timeout=60000)
        page.wait_for_timeout(3000)
        yield page
    finally:
        browser.close()
