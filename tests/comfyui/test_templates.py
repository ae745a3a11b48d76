"""Every template runs in a real ComfyUI on the pack's demo checkpoints, and on the golden checkpoints it gives the
original implementation's images; the schema snapshot is up to date."""

import json
import os

import numpy as np
import pytest
from conftest import pixels_of
from graphs import outputs_of, twin
from judged import same_scene, shows
from PIL import Image
from templates.catalogue import TEMPLATES, WITHOUT_DEMO
from workflow_files import FILES, SNAPSHOT, WORKFLOWS, inputs_of, is_combo, read

from demo.recipe.judge import find_objects

OURS = ("Janus",)


def snapshot_of(server) -> dict:
    """/object_info of our nodes and of those that the workflows use or JANUS_REFRESH names, without installed files."""
    live = server.get("/object_info")
    used = {node["type"] for path in WORKFLOWS for node in read(path)["nodes"]}
    used |= set(os.environ.get("JANUS_REFRESH", "").split(","))
    used |= {name for name in live if name.startswith(OURS)}
    out = {}
    for name in sorted(used & set(live)):
        info = {key: live[name][key] for key in ("input", "output", "output_is_list", "output_name", "display_name")}
        for field, spec in inputs_of(info).items():
            if field in FILES and is_combo(spec):
                if isinstance(spec[0], list):
                    spec[0] = []
                else:
                    spec[1]["options"] = []
        out[name] = info
    return out


def test_the_schema_snapshot_is_up_to_date(server):
    """Stock nodes differ between ComfyUI versions; ours must be as in the snapshot (JANUS_REFRESH=1 writes it, and
    JANUS_REFRESH=KSamplerAdvanced also that node)."""
    live = snapshot_of(server)
    if os.environ.get("JANUS_REFRESH"):
        SNAPSHOT.write_text(json.dumps(live, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    saved = read(SNAPSHOT)
    assert {n: saved[n] for n in saved if n.startswith(OURS)} == {n: live[n] for n in live if n.startswith(OURS)}
    assert set(live) <= set(saved)


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS if path.stem not in WITHOUT_DEMO])
def test_template_runs(server, name):
    """The last image shows the template's scene, and written answers describe it."""
    prompt = twin(name)
    outputs = server.run(prompt)
    for node in outputs_of(prompt, "SaveImage"):
        assert pixels_of(server, outputs, node).std() > 0
    answers = [outputs[node]["text"][0] for node in outputs_of(prompt, "PreviewAny")]
    scene = TEMPLATES[name].scene
    if scene is not None:
        last = pixels_of(server, outputs, outputs_of(prompt, "SaveImage")[-1])
        assert shows(Image.fromarray(last), scene)
    for answer in answers:
        assert all(same_scene(line, scene) for line in answer.splitlines() if line.strip()), answer


def test_an_image_of_the_contact_sheet_alone(server):
    """Image k of the sheet is the image of seed + k in a batch of one."""
    sheet = twin("Janus-Pro - Batch Contact Sheet")
    (seed,) = {node["inputs"]["seed"] for node in sheet.values() if "seed" in node["inputs"]}
    (save,) = outputs_of(sheet, "SaveImage")
    images = pixels_of(server, server.run(sheet), save)
    changes = {"JanusTokenSampler.seed": seed + 5, "EmptyLatentImage.batch_size": 1, "ImageGrid.columns": 1}
    alone = pixels_of(server, server.run(twin("Janus-Pro - Batch Contact Sheet", **changes)), save)
    row, column, step = 1, 2, alone.shape[0] + 4
    inside = images[row * step : row * step + alone.shape[0], column * step : column * step + alone.shape[1]]
    assert (inside == alone).all()
    for y in range(0, images.shape[0], step):
        for x in range(0, images.shape[1], step):
            background, found = find_objects(Image.fromarray(images[y : y + step - 4, x : x + step - 4]))
            assert background == "blue" and [one.shape for one in found] == ["circle"]


def on_goldens(name, **changes):
    """A template's API twin on the golden checkpoints, at their size and in float32."""
    prompt = twin(name, **changes)
    for node in prompt.values():
        if node["class_type"] in ("JanusProLoader", "JanusFlowLoader"):
            node["inputs"]["model_name"] = "ar-a" if node["class_type"] == "JanusProLoader" else "flow-a"
            node["inputs"]["weight_dtype"] = "fp32"
        if node["class_type"] == "VAELoader":
            node["inputs"]["vae_name"] = "sdxl_vae.safetensors"
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"].update(width=96, height=96)
    return prompt


def test_text_to_image_template_gives_the_golden_image(server, golden):
    ar = golden("ar-a")
    changes = {"JanusTokenSampler.temperature": 0.0, "JanusPromptEncode.text": ar.text["gen0.prompt"]}
    prompt = on_goldens("Janus-Pro - Text to Image", **changes)
    pixels = pixels_of(server, server.run(prompt), outputs_of(prompt, "SaveImage")[0])
    expected = ((ar.expected["gen0.cfg5.image"][0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(float) - expected).max() <= 2


def test_ksampler_template_gives_the_same_image_twice(server):
    prompt = on_goldens("JanusFlow - KSampler and SamplerCustom")
    outputs = server.run(prompt)
    a, b = (pixels_of(server, outputs, node).astype(int) for node in outputs_of(prompt, "SaveImage"))
    assert np.abs(a - b).max() <= 2


def test_blueprints_are_offered(server):
    """Both text-to-image chains as subgraph blueprints, each holding one subgraph of known nodes."""
    offered = {
        entry["name"]: key for key, entry in server.get("/global_subgraphs").items() if entry["source"] == "custom_node"
    }
    known = server.get("/object_info")
    for name in ("Janus-Pro (Text to Image)", "JanusFlow (Text to Image)"):
        blueprint = json.loads(server.get(f"/global_subgraphs/{offered[name]}")["data"])
        (node,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
        assert node["type"] == subgraph["id"] and [o["type"] for o in node["outputs"]] == ["IMAGE"]
        assert {inner["type"] for inner in subgraph["nodes"]} <= set(known)
        assert [i["name"] for i in node["inputs"]] == [i["name"] for i in subgraph["inputs"]]
        inner = {n["id"]: n for n in subgraph["nodes"]}
        for link in subgraph["links"]:
            if link["origin_id"] == -10:
                assert inner[link["target_id"]]["inputs"][link["target_slot"]]["widget"]
