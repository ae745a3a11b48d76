"""A help page per node, a tooltip per input, and translations of both."""

import re

import help_tables
import pytest
from help_tables import DOCS, LANGUAGES, NODES
from workflow_files import ROOT, inputs_of, read

LOCALES = ROOT / "locales"
CHINESE = re.compile("[\u4e00-\u9fff]")


def page(node: str, language: str) -> str:
    return help_tables.page(node, language).read_text(encoding="utf-8")


def locale(language: str) -> dict:
    return read(LOCALES / language / "nodeDefs.json")


@pytest.mark.parametrize("node", NODES)
def test_every_input_has_a_tooltip(node):
    for name, spec in inputs_of(NODES[node]).items():
        assert len(spec) > 1 and spec[1].get("tooltip"), name


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_every_page_has_every_input_and_output(node, language):
    text = page(node, language)
    assert text.splitlines()[0] == f"# {locale(language)[node]['display_name']}"
    for name in (*inputs_of(NODES[node]), *NODES[node]["output_name"]):
        assert f"\n| `{name}`" in text, name


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_every_table_has_types_defaults_and_ranges(node, language):
    """`python tests/help_tables.py` writes them."""
    text = page(node, language)
    assert help_tables.written(text, node, language) == text
    assert text.count(f"\n| {' | '.join(help_tables.WORDS[language]['titles'])} |\n") == 1


@pytest.mark.parametrize("node", NODES)
def test_chinese_texts_are_chinese(node):
    """Whatever fonts show it: no text that was left in English, and pages of as many points as the English ones."""
    entry, english = locale("zh")[node], locale("en")[node]
    texts = [entry["display_name"], entry["description"]]
    texts += [one["tooltip"] for group in ("inputs", "outputs") for one in entry[group].values() if one.get("tooltip")]
    assert [text for text in texts if not CHINESE.search(text)] == []
    for group in ("inputs", "outputs"):
        assert list(entry[group]) == list(english[group])
        assert all(
            bool(entry[group][key].get("tooltip")) == bool(english[group][key].get("tooltip")) for key in entry[group]
        )
    lines = [line for line in page(node, "zh").splitlines() if line and line[0] not in "!" and set(line) - set("|- ")]
    assert [line for line in lines if not CHINESE.search(line)] == []
    for mark in ("- ", "| `", "## "):
        count = {language: f"\n{page(node, language)}".count(f"\n{mark}") for language in LANGUAGES}
        assert count["en"] == count["zh"], mark


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_every_page_shows_its_node(node, language):
    """ComfyUI resolves image paths from the docs folder, whatever page they are in."""
    assert f"](images/{node}.jpg)" in page(node, language)
    assert (DOCS / "images" / f"{node}.jpg").stat().st_size < 100_000


def test_every_page_belongs_to_a_node():
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages == {f"{node}.md" for node in NODES} | {f"{node}/zh.md" for node in NODES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_locales_cover_every_node_input_and_output(language):
    texts = locale(language)
    assert set(texts) == set(NODES)
    for node, info in NODES.items():
        entry, inputs = texts[node], inputs_of(info)
        assert entry["display_name"] and entry["description"], node
        assert set(entry["inputs"]) == set(inputs), node
        assert all(entry["inputs"][name]["name"] and entry["inputs"][name]["tooltip"] for name in inputs), node
        assert list(entry["outputs"]) == [str(k) for k in range(len(info["output_name"]))], node


def test_the_english_locale_has_the_nodes_texts():
    for node, entry in locale("en").items():
        assert entry["display_name"] == NODES[node]["display_name"]
        for name, spec in inputs_of(NODES[node]).items():
            assert entry["inputs"][name] == {"name": name, "tooltip": spec[1]["tooltip"]}


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_texts_hold_no_placeholders_or_plurals(language):
    """The frontend's translation library gives { } @ | a meaning of their own."""

    def texts(value):
        return [value] if isinstance(value, str) else [text for part in value.values() for text in texts(part)]

    assert not [text for text in texts(locale(language)) if set(text) & set("{}@|")]
