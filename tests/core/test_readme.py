"""README and docs: their tables are computed, their links lead somewhere."""

import re
from urllib.parse import unquote

import pytest
from workflow_files import ROOT, WORKFLOWS

from benchmarks import model_sizes

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "demo/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def test_the_table_of_models_is_computed():
    """`python -m benchmarks.model_sizes` writes it."""
    assert model_sizes.written(README) == README
    assert "4.2 GB" in README and "14.8 GB" in README, "the sizes of the official files of the 1B and 7B models"


def test_readme_can_be_read_in_minutes():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(page):
    for link, _, heading in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        target = page.parent / unquote(link) if link else page
        assert target.exists(), link
        assert not heading or heading in headings(target), f"{link}#{heading}"


def headings(page) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_every_template_is_in_the_gallery():
    missing = [path.stem for path in WORKFLOWS if f"**{path.stem}**" not in README]
    assert not missing
