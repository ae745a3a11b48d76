"""A running ComfyUI serves the help pages and the translations, and the English locale is up to date."""

import json
import os
import urllib.request

from workflow_files import ROOT, inputs_of

ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"


def english(info: dict) -> dict:
    """A node's entry of locales/en/nodeDefs.json, from its /object_info."""
    outputs = {}
    for k, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"])):
        outputs[str(k)] = {"name": name, **({"tooltip": tooltip} if tooltip else {})}
    inputs = {name: {"name": name, "tooltip": spec[1].get("tooltip", "")} for name, spec in inputs_of(info).items()}
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def test_translations_are_served_and_the_english_ones_are_up_to_date(server):
    """JANUS_REFRESH=1 writes the English ones from the nodes."""
    info = server.get("/object_info")
    expected = {node: english(info[node]) for node in sorted(info) if node.startswith("Janus")}
    if os.environ.get("JANUS_REFRESH"):
        ENGLISH.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(ENGLISH.read_text(encoding="utf-8")) == expected
    served = server.get("/i18n")
    for language in ("en", "zh"):
        assert set(expected) <= set(served[language]["nodeDefs"])


def test_help_pages_are_served_where_the_frontend_asks(server):
    nodes = {name: info for name, info in server.get("/object_info").items() if name.startswith("Janus")}
    for node, info in nodes.items():
        pack = info["python_module"].removeprefix("custom_nodes.")
        for page in (f"{node}.md", f"{node}/zh.md"):
            url = f"http://127.0.0.1:{server.port}/extensions/{pack}/docs/{page}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.read().decode().startswith("# "), page
        with urllib.request.urlopen(url.replace(page, f"images/{node}.jpg"), timeout=60) as answer:
            assert answer.read(2) == b"\xff\xd8", "a JPEG file"


def test_the_node_search_finds_every_node_by_the_makers_name(server):
    nodes = {name: info for name, info in server.get("/object_info").items() if name.startswith("Janus")}
    assert [name for name, info in nodes.items() if not {"janus", "deepseek"} <= set(info["search_aliases"])] == []
