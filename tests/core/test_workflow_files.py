"""Every workflow file against the nodes' schema (a snapshot of /object_info) and the rules of layout."""

from itertools import combinations

import pytest
from PIL import Image
from templates.blueprints import blueprints
from templates.catalogue import TEMPLATES, templates
from templates.layout import MAX_HEIGHT, MAX_WIDTH, TITLE, Box
from templates.notes import note_height
from templates.thumbnails import SIZE
from workflow_files import NOTES, ROOT, SNAPSHOT, TWINS, WORKFLOWS, problems, read, to_api


@pytest.fixture(scope="module")
def object_info():
    return read(SNAPSHOT)


def test_the_files_are_what_the_catalogue_writes(object_info):
    """After `python -m tests.templates`, which also writes the API twins."""
    assert {path.stem for path in WORKFLOWS} == set(TEMPLATES) == {path.stem for path in TWINS.glob("*.json")}
    for template in templates(object_info):
        assert template.workflow() == read(ROOT / "workflows" / f"{template.name}.json"), template.name
    written = dict(blueprints(object_info))
    assert written == {path.stem: read(path) for path in (ROOT / "subgraphs").glob("*.json")}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow(path, object_info):
    workflow = read(path)
    assert problems(to_api(workflow, object_info), object_info) == []
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for _, source, out, target, slot, kind in workflow["links"]:
        assert by_id[source]["outputs"][out]["type"] == kind
        assert by_id[target]["inputs"][slot]["link"] is not None


def box_of(node) -> Box:
    """A node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return Box(x, y - TITLE, width, height + TITLE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_layout(path):
    workflow = read(path)
    nodes = {node["id"]: box_of(node) for node in workflow["nodes"]}
    groups = [Box(*group["bounding"]) for group in workflow["groups"]]
    boxes = [*nodes.values(), *groups]
    assert max(b.right for b in boxes) - min(b.x for b in boxes) <= MAX_WIDTH
    assert max(b.bottom for b in boxes) - min(b.y for b in boxes) <= MAX_HEIGHT
    for boxes in (nodes.values(), groups):
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    for _, source, _, target, _, _ in workflow["links"]:
        assert nodes[source].right < nodes[target].x, "a wire runs backwards"
    (note,) = (node for node in workflow["nodes"] if node["type"] in NOTES)
    for key, box in nodes.items():
        inside = [g for g in groups if g.x < box.x and box.right < g.right and g.y < box.y and box.bottom < g.bottom]
        assert len(inside) == (0 if key == note["id"] else 1), "a node outside its group, or a note in one"
    assert not any(nodes[note["id"]].overlaps(group) for group in groups)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_note(path):
    (note,) = (node for node in read(path)["nodes"] if node["type"] in NOTES)
    (text,) = note["widgets_values"]
    assert note["size"][1] >= note_height(text, note["size"][0])
    paragraphs = text.split("\n\n")
    assert paragraphs[0].startswith("## ") and len(set(paragraphs)) == len(paragraphs)
    for words in ("demo models", "**official weights**", "python janus_core download"):
        assert sum(words in paragraph for paragraph in paragraphs) == 1, words
    assert "https://huggingface.co/deepseek-ai/" in text and "draw" not in text


def test_thumbnails():
    """Each template has a small square image of its own (`python -m tests.templates thumbnails`)."""
    paths = [path.with_suffix(".jpg") for path in WORKFLOWS]
    assert len({path.read_bytes() for path in paths}) == len(paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (SIZE, SIZE) and path.stat().st_size < 30_000, path.name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_api_twin(path, object_info):
    assert to_api(read(path), object_info) == read(TWINS / path.name)


def test_the_checks_find_mistakes(object_info):
    good = read(TWINS / "JanusFlow - KSampler and SamplerCustom.json")
    sampler = next(k for k, n in good.items() if n["class_type"] == "KSampler")
    loader = next(k for k, n in good.items() if n["class_type"] == "JanusFlowLoader")
    for change, word in (
        ({"sampler_name": "eulr"}, "option"),
        ({"steps": 0}, "between"),
        ({"model": [loader, 1]}, "needs MODEL"),
        ({"model": ["99", 0]}, "not there"),
        ({"model": [loader, 7]}, "output 7"),
        ({"banana": 1}, "no input"),
        ({"positive": 3}, "needs a link"),
    ):
        bad = {**good, sampler: {"class_type": "KSampler", "inputs": {**good[sampler]["inputs"], **change}}}
        assert any(word in p for p in problems(bad, object_info)), change
    assert problems({"1": {"class_type": "Nope", "inputs": {}}}, object_info)


def test_the_node_contract(object_info):
    """The ids, inputs, defaults and outputs that saved workflows depend on."""
    contract = {
        "JanusProLoader": (["model_name", "weight_dtype"], ["MODEL", "CLIP", "VAE"]),
        "JanusFlowLoader": (["model_name", "weight_dtype"], ["MODEL", "CLIP"]),
        "JanusPromptEncode": (["clip", "text", "negative_text"], ["CONDITIONING", "CONDITIONING"]),
        "JanusTokenSampler": (
            ["model", "positive", "negative", "latent_image", "seed", "cfg", "temperature", "top_k", "top_p"],
            ["LATENT"],
        ),
        "JanusFlowSampler": (
            ["model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "denoise"],
            ["LATENT"],
        ),
        "JanusFlowScheduler": (["steps", "denoise"], ["SIGMAS"]),
        "JanusDescribeImage": (
            ["clip", "image", "question", "max_new_tokens", "temperature", "top_p", "seed"],
            ["STRING"],
        ),
    }
    defaults = {
        "seed": 0, "cfg": {"JanusTokenSampler": 5.0, "JanusFlowSampler": 2.0}, "top_k": 0, "steps": 30, "denoise": 1.0,
        "temperature": {"JanusTokenSampler": 1.0, "JanusDescribeImage": 0.0}, "max_new_tokens": 512,
        "top_p": {"JanusTokenSampler": 1.0, "JanusDescribeImage": 0.95}, "negative_text": "", "weight_dtype": "default",
    }  # fmt: skip
    for name, (inputs, outputs) in contract.items():
        info = object_info[name]
        required = info["input"]["required"]
        assert list(required)[: len(inputs)] == inputs and info["output"] == outputs, name
        for field, spec in required.items():
            if field in defaults:
                expected = defaults[field]
                assert spec[1]["default"] == (expected[name] if isinstance(expected, dict) else expected), (name, field)
    assert object_info["JanusDescribeImage"]["output_is_list"] == [True]
