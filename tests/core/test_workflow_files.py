"""Every workflow file against the nodes' schema (a snapshot of /object_info), without ComfyUI."""

import pytest
from workflow_files import NOTES, SNAPSHOT, TWINS, WORKFLOWS, problems, read, to_api

EXPECTED = {
    "janusflow_inpaint",
    "janus_pro_token_edit",
    "janus_pro_refined_by_janusflow",
    "janus_compare_families",
    "janus_upscale",
    "janus_pro_text_to_image",
    "janusflow_text_to_image",
    "janusflow_ksampler",
    "janusflow_image_to_image",
    "janus_describe_image",
}


@pytest.fixture(scope="module")
def object_info():
    return read(SNAPSHOT)


def test_all_workflows_exist():
    assert EXPECTED <= {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow(path, object_info):
    workflow = read(path)
    assert problems(to_api(workflow, object_info), object_info) == []
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for _, source, out, target, slot, kind in workflow["links"]:
        assert by_id[source]["outputs"][out]["type"] == kind
        assert by_id[target]["inputs"][slot]["link"] is not None
    assert any(node["type"] in NOTES for node in workflow["nodes"])
    boxes = [
        (*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in workflow["nodes"]
    ]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], "two nodes overlap"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_api_twin(path, object_info):
    assert to_api(read(path), object_info) == read(TWINS / path.name)


def test_the_checks_find_mistakes(object_info):
    good = read(TWINS / "janusflow_ksampler.json")
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
