"""README and docs: their tables are computed, their links lead somewhere."""

import re
from urllib.parse import unquote

import pytest
from workflow_files import ROOT, WORKFLOWS

from benchmarks import model_sizes

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_models_is_computed():
    """`python -m benchmarks.model_sizes` writes it."""
    assert model_sizes.written(README) == README
    assert "4.2 GB" in README and "14.8 GB" in README, "the sizes of the official files of the 1B and 7B models"


def test_readme_can_be_read_in_minutes():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / unquote(link)).exists(), link


def test_every_template_is_in_the_gallery():
    missing = [path.stem for path in WORKFLOWS if f"**{path.stem}**" not in README]
    assert not missing
