"""What the benchmarks' scorers find: file names and metadata, by their own reading rules."""

import json
import os
import re

import pytest

from janus_core.batch.layouts import benchmark_outputs
from janus_core.batch.manifest import Defaults
from janus_core.batch.outputs import BatchError


def outputs_of(name, path, **more):
    return benchmark_outputs(name, path, Defaults(seed=1, settings={"guidance": 5.0}), **more)


def test_geneval(tmp_path):
    items = [
        {"tag": "counting", "include": [{"class": "cat", "count": k + 1}], "prompt": f"a photo of {k + 1} cats"}
        for k in range(12)
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, items)) + "\n")
    outputs = outputs_of("geneval", path)
    assert len(outputs) == 48
    for output in outputs:
        folder, samples, image = output.path.split("/")
        assert folder.isdigit() and samples == "samples" and re.match(r"\d+\.png$", image)
        ((beside, text),) = output.beside.items()
        assert beside == f"{folder}/metadata.jsonl" and json.loads(text) == items[int(folder)]
        assert output.prompt == items[int(folder)]["prompt"] and len(output.seeds) == 1
    assert outputs[5].path == "00001/samples/0001.png"
    assert len(outputs_of("geneval", path, samples=2, limit=3)) == 6
    assert {output.seeds for output in outputs_of("geneval", path, limit=3)} <= {output.seeds for output in outputs}


def test_other_line_separators_do_not_end_a_prompt(tmp_path):
    text = "two\u2028lines\x85and more"
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert {output.prompt for output in outputs_of("geneval", path)} == {text}


def test_dpg(tmp_path):
    for name in ("0", "partiprompts10", "COCOval2014000000"):
        (tmp_path / f"{name}.txt").write_text(f"A long prompt of {name}.\n")
    outputs = outputs_of("dpg", tmp_path)
    prompts = {f"{name}.png": f"A long prompt of {name}." for name in ("0", "partiprompts10", "COCOval2014000000")}
    assert {output.path: output.prompt for output in outputs} == prompts
    assert all(len(output.seeds) == 4 and output.beside == {} for output in outputs)
    assert all(len(output.seeds) == 1 for output in outputs_of("dpg", tmp_path, samples=1))
    with pytest.raises(BatchError, match="4 or 1"):
        outputs_of("dpg", tmp_path, samples=3)


def test_wise(tmp_path):
    def item(k):
        return {"Prompt": f"prompt {k}", "Explanation": "", "Category": "", "Subcategory": "", "prompt_id": k}

    (tmp_path / "a.json").write_text(json.dumps([item(k) for k in (1, 2, 10)]))
    (tmp_path / "b.json").write_text(json.dumps([item(k) for k in (11, 400)]))
    (tmp_path / "merge.json").write_text(json.dumps([item(k) for k in (1, 2, 10, 11, 400)]))
    outputs = outputs_of("wise", tmp_path)
    assert [output.path for output in outputs] == ["1.png", "2.png", "10.png", "11.png", "400.png"]
    assert [output.path for output in outputs_of("wise", tmp_path / "a.json")] == ["1.png", "2.png", "10.png"]
    (tmp_path / "merge.json").write_text(json.dumps([{**item(1), "Prompt": "another"}]))
    with pytest.raises(BatchError, match="another prompt 1"):
        outputs_of("wise", tmp_path)
    (tmp_path / "merge.json").write_text('{"a": 1}')
    with pytest.raises(BatchError, match="list of objects"):
        outputs_of("wise", tmp_path / "merge.json")


def test_compbench(tmp_path):
    prompts = ["a green bench and a blue bowl", "a red apple. on a table"]
    path = tmp_path / "color_val.txt"
    path.write_text("\n".join(prompts) + "\n")
    outputs = outputs_of("compbench", path)
    assert len(outputs) == 20 and all(output.path.startswith("samples/") for output in outputs)
    names = [os.path.basename(output.path) for output in outputs]
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))  # as the scorers sort
    assert [name.split("_")[0] for name in names] == [prompts[0]] * 10 + [prompts[1]] * 10
    assert [int(name[-10:-4]) for name in names] == list(range(20))
    path.write_text("a cat/dog\n")
    with pytest.raises(BatchError, match="line 1"):
        outputs_of("compbench", path)


@pytest.mark.parametrize("name", ["geneval", "dpg", "wise", "compbench"])
def test_prompts_that_are_not_there(tmp_path, name):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BatchError):
            outputs_of(name, path)
