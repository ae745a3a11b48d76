"""pyproject.toml, requirements.txt and CHANGELOG.md agree, and meet the registry's requirements."""

import re

import pytest
from workflow_files import ROOT

import janus_core

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def test_one_version_everywhere():
    latest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert PROJECT["version"] == janus_core.__version__ == latest.group(1)


def test_dependencies_are_those_of_requirements_txt():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
    assert PROJECT["dependencies"] == [line for line in lines if line and not line.startswith("#")]


def test_the_registrys_requirements():
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", PROJECT["name"]) and "comfy" not in PROJECT["name"]
    assert PROJECT["description"] and PROJECT["urls"]["Repository"].startswith("https://")
    assert (ROOT / PROJECT["license"]["file"]).is_file()
    comfy = PYPROJECT["tool"]["comfy"]
    assert comfy["DisplayName"] and comfy["PublisherId"] and comfy["requires-comfyui"]
    assert "" not in comfy.values()
