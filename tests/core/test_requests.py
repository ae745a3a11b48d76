"""Requests in TorchUMM's form, their configurations, and the adapter for TorchUMM itself."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import janus_core
from janus_core.errors import JanusError
from janus_core.requests import Request, Runner
from janus_core.requests.__main__ import main
from janus_core.requests.config import inference_of, read_config
from janus_core.requests.request import RequestError


@pytest.fixture(scope="module")
def pipe(golden):
    return janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)


def pixels(image):
    return np.asarray(image).astype(int)


def test_generation_names_files_as_torchumm_does(pipe, tmp_path):
    runner = Runner(pipe, generation_cfg={"parallel_size": 2})
    request = {"backbone": "janus_pro", "task": "generation", "prompt": "a cat", "output_path": str(tmp_path / "x.png")}
    found = runner.run(request)
    assert found["saved_paths"] == [str(tmp_path / "x_0.png"), str(tmp_path / "x_1.png")]
    assert Image.open(tmp_path / "x_1.png").tobytes() == found["images"][1].tobytes()
    assert found["image"] is found["images"][0] and found["images"][0].tobytes() != found["images"][1].tobytes()
    one = runner.run({**request, "params": {"parallel_size": 1}, "output_path": str(tmp_path / "sub" / "y.jpg")})
    assert one["saved_paths"] == [str(tmp_path / "sub" / "y.jpg")]
    assert Image.open(tmp_path / "sub" / "y.jpg").format == "JPEG"
    assert runner.run({**request, "output_path": None})["saved_paths"] == []


def test_guidance_towards_an_image_may_be_set_for_all_requests(pipe):
    """It is of edits alone."""
    request = {"task": "generation", "prompt": "a cat", "params": {"parallel_size": 1}}
    found, plain = (Runner(pipe, generation_cfg=cfg).run(request) for cfg in ({"image_guidance": 3}, {}))
    assert found["image"].tobytes() == plain["image"].tobytes()
    with pytest.raises(JanusError, match="image_guidance"):
        Runner(pipe).run({**request, "params": {"parallel_size": 1, "image_guidance": 3}})


def test_many_requests_are_batched_and_equal_single_ones(pipe, monkeypatch):
    requests = [{"task": "generation", "prompt": p, "params": {"parallel_size": 2}} for p in ("a cat", "a red dog")]
    requests.append({"task": "generation", "prompt": "a cat", "params": {"parallel_size": 1, "cfg_weight": 2.0}})
    singles = [Runner(pipe).run(request) for request in requests]
    sizes, original = [], pipe.generate_tokens
    monkeypatch.setattr(
        pipe, "generate_tokens", lambda prompts, **s: sizes.append(len(prompts)) or original(prompts, **s)
    )
    many = Runner(pipe).run_many(requests[:2] + requests[2:], batch_size=8)
    assert sizes == [4, 1]
    for single, found in zip(singles, many[:2]):
        for a, b in zip(single["images"], found["images"]):
            assert abs(pixels(a) - pixels(b)).max() <= 1


def test_seeds_do_not_depend_on_what_ran_before_or_where(pipe):
    request = {"task": "generation", "prompt": "a cat", "output_path": "/a/b/00000/samples/0001.png"}
    runner = Runner(pipe)
    runner._plan(Request.of({"task": "generation", "prompt": "a dog"}))
    plan = runner._plan(Request.of(request))
    elsewhere = Runner(pipe)._plan(Request.of({**request, "output_path": "/c/00000/samples/0001.png"}))
    assert plan.seeds == elsewhere.seeds and len(set(plan.seeds)) == 4
    other = Runner(pipe)._plan(Request.of({**request, "output_path": "/a/b/00000/samples/0002.png"}))
    again = runner._plan(Request.of(request))
    assert not {*other.seeds, *again.seeds} & set(plan.seeds)
    assert Runner(pipe)._plan(Request.of({**request, "params": {"seed": 5}})).seeds == [5, 6, 7, 8]


def test_understanding_answers_as_describe_does(golden, pipe):
    golden = golden("ar-a")
    image, question = str(golden.folder / "picture.png"), golden.text["und.question"]
    runner = Runner(pipe, understanding_cfg={"max_new_tokens": 10, "use_cache": True})
    requests = [{"task": "understanding", "prompt": question, "images": [image]}] * 2
    expected = pipe.describe(Image.open(image), question, max_new_tokens=10)[0]
    found = runner.run_many(requests)
    assert [one["text"] for one in found] == [expected, expected]
    assert question in found[0]["sft_format"]
    assert (
        runner.run({"task": "understanding", "prompt": "Hello"})["text"]
        == pipe.describe(None, "Hello", max_new_tokens=10)[0]
    )
    empty = runner.run({**requests[0], "params": {"system_prompt": "", "roles": "User"}})
    assert empty["sft_format"].startswith("User: <image_placeholder>")


def test_editing(golden, pipe):
    image = str(golden("ar-a").folder / "picture.png")
    request = {"task": "editing", "prompt": "make it red", "images": [image], "params": {"parallel_size": 1, "seed": 3}}
    (expected,) = pipe.edit(Image.open(image), "make it red", seed=3)
    assert pixels(Runner(pipe).run(request)["image"]).shape == pixels(expected).shape
    assert abs(pixels(Runner(pipe).run(request)["image"]) - pixels(expected)).max() <= 1


def test_editing_uses_the_roles_that_are_asked_for(golden, pipe):
    image = str(golden("ar-a").folder / "picture.png")
    params = {"parallel_size": 1, "seed": 3, "roles": "User"}
    found = Runner(pipe).run({"task": "editing", "prompt": "make it red", "images": [image], "params": params})
    expected, other = (pipe.edit(Image.open(image), "make it red", seed=3, roles=r)[0] for r in ("User", "auto"))
    assert abs(pixels(found["image"]) - pixels(expected)).max() <= 1 < abs(pixels(expected) - pixels(other)).max()


@pytest.mark.parametrize("name", ["cfg_weight", "guidance_scale"])
@pytest.mark.parametrize("other", ["cfg_weight", "guidance_scale"])
def test_a_request_wins_over_the_configuration_whatever_the_names(pipe, name, other):
    runner = Runner(pipe, generation_cfg={other: 3})
    request = {"task": "generation", "prompt": "a cat"}
    assert runner._plan(Request.of(request)).settings["guidance"] == 3
    assert runner._plan(Request.of({**request, "params": {name: 7}})).settings["guidance"] == 7
    assert Runner(pipe)._plan(Request.of(request)).settings["guidance"] == 5


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({}, "needs a task"),
        ({"task": "dancing"}, "task is 'dancing'"),
        ({"task": "generation"}, "needs a prompt"),
        ({"task": "editing", "prompt": "x"}, "one image"),
        ({"task": "understanding"}, "prompt or an image"),
        ({"task": "understanding", "prompt": "x", "videos": ["a.mp4"]}, "not videos"),
        ({"task": "generation", "prompt": "x", "colour": 1}, "no setting 'colour'"),
        ({"task": "generation", "prompt": "x", "params": {"steps": 1}}, "no setting 'steps'"),
        ({"task": "generation", "prompt": "x", "params": {"parallel_size": 0}}, "parallel_size is 0"),
        ({"task": "generation", "prompt": "x", "params": {"patch_size": 8}}, "patch_size is 8"),
        ({"task": "generation", "prompt": "x", "params": {"img_size": 96, "image_token_num_per_image": 9}}, "has 36"),
    ],
)
def test_requests_that_cannot_be_used(pipe, values, part):
    with pytest.raises(RequestError, match=part):
        Runner(pipe).run(values)


def test_tokens_are_counted_by_the_models_patch_size(pipe, monkeypatch):
    monkeypatch.setattr(type(pipe), "patch_size", 8)
    request = {"task": "generation", "prompt": "a cat"}
    params = {"patch_size": 8, "img_size": 96, "image_token_num_per_image": 144}
    assert Runner(pipe)._plan(Request.of({**request, "params": params})).settings["size"] == [96, 96]
    for wrong in ({"patch_size": 16}, {"image_token_num_per_image": 36}):
        with pytest.raises(RequestError, match="144|it must be 8"):
            Runner(pipe)._plan(Request.of({**request, "params": params | wrong}))


def test_config_environment_and_overrides(tmp_path, monkeypatch):
    path = tmp_path / "x.yaml"
    path.write_text(
        "inference:\n  backbone: janus_pro\n  request: {task: generation, prompt: a cat}\n"
        "  backbone_cfg:\n    model_path: ${MODELS}/pro\n    vae_path: ${UNSET_X}/v\n"
    )
    monkeypatch.setenv("MODELS", "/models")
    config = read_config(
        path, ["inference.backbone_cfg.seed=7", "inference.backbone_cfg.generation_cfg.cfg_weight=2.5"]
    )
    cfg, requests, batch_size = inference_of(config)
    assert cfg["model_path"] == "/models/pro" and cfg["vae_path"] == "${UNSET_X}/v" and cfg["seed"] == 7
    assert cfg["generation_cfg"] == {"cfg_weight": 2.5} and requests == [{"task": "generation", "prompt": "a cat"}]
    for bad in ("seed", "=3", "inference.backbone.x=1", "a.=1"):
        with pytest.raises(RequestError, match="--set"):
            read_config(path, [bad])
    path.write_text("a: [1")
    with pytest.raises(RequestError, match="not valid YAML"):
        read_config(path)


def test_a_json_config_is_read_as_json(tmp_path, monkeypatch):
    """YAML 1.1 reads some JSON differently, and needs a library."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    request = {"task": "generation", "prompt": "a cat \N{CAT FACE}"}
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps({"request": request, "backbone_cfg": {"generation_cfg": {"cfg_weight": 1e-10}}}), "utf-8-sig"
    )
    assert "\\ud83d" in path.read_text() and "1e-10" in path.read_text()
    cfg, requests, _ = inference_of(read_config(path))
    assert requests == [request] and cfg["generation_cfg"] == {"cfg_weight": 1e-10}
    path.write_text("a: 1")
    with pytest.raises(RequestError, match="not valid JSON"):
        read_config(path)
    (tmp_path / "x.yaml").write_text("a: 1")
    with pytest.raises(RequestError, match="need PyYAML"):
        read_config(tmp_path / "x.yaml")


def test_command(golden, tmp_path, capsys):
    path = tmp_path / "x.yaml"
    config = {"inference": {"backbone_cfg": {"model_path": str(golden("ar-a").folder), "torch_dtype": "float32"}}}
    requests = [
        {"task": "generation", "prompt": p, "output_path": str(tmp_path / f"{p}.png"), "params": {"parallel_size": 1}}
        for p in ("cat", "dog")
    ]
    config["inference"]["requests"] = requests
    path.write_text(json.dumps(config))
    assert main([str(path), "--set", "inference.backbone_cfg.seed=1", "--output-json", str(tmp_path / "r.json")]) == 0
    assert [one["saved_paths"] for one in json.loads((tmp_path / "r.json").read_text())] == [
        [str(tmp_path / "cat.png")],
        [str(tmp_path / "dog.png")],
    ]
    assert main([str(path), "--set", "inference.backbone_cfg.model_path=/none"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_adapter_answers_torchumms_calls(golden, monkeypatch, tmp_path):
    """With the interface of TorchUMM's registry; docs/evaluation.md says how the real one was run."""
    registered = {}
    registry = types.ModuleType("umm.core.registry")
    registry.register = lambda kind, name, factory: registered.update({(kind, name): factory})
    registry.list_registered = lambda kind: sorted(name for _, name in registered)
    registry.__file__ = str(tmp_path / "core" / "registry.py")
    (tmp_path / "backbones" / "bagel").mkdir(parents=True)
    (tmp_path / "backbones" / "bagel" / "__init__.py").write_text("class BagelBackbone: pass\n")
    umm, core, backbones = (types.ModuleType(name) for name in ("umm", "umm.core", "umm.backbones"))
    umm.core, core.registry, backbones.__path__ = core, registry, [str(tmp_path / "backbones")]
    modules = {"umm": umm, "umm.core": core, "umm.core.registry": registry, "umm.backbones": backbones}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    from janus_core.requests import umm as adapter

    adapter.register()
    assert {"janus", "janus_pro", "janus_flow", "bagel", "show_o2"} == {name for _, name in registered}
    assert type(registered["backbone", "bagel"]()).__name__ == "BagelBackbone"
    backbone = registered["backbone", "janus_pro"]()
    with pytest.raises(RequestError, match="not loaded"):
        backbone.generation(prompt="a cat")
    backbone.load({"model_path": str(golden("ar-a").folder), "torch_dtype": "float32", "janus_root": "/unused"})
    path = str(tmp_path / "x.png")
    found = backbone.generation(prompt="a cat", output_path=path, generation_cfg={"parallel_size": 1})
    assert found["saved_paths"] == [path] and found["image"].size == (96, 96)
    assert backbone.understanding("Hi", [], [], {"max_new_tokens": 2})["text"] is not None
    sys.modules.pop("umm.backbones.bagel", None)


def test_without_torchumm_the_adapter_says_so(monkeypatch):
    from janus_core.requests import umm as adapter

    monkeypatch.setitem(sys.modules, "umm", None)
    with pytest.raises(RequestError, match="cannot be imported"):
        adapter.register()
