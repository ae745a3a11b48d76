"""Converts saved workflows to API prompts and checks them against the nodes' schema."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
TWINS = ROOT / "tests" / "data" / "api"
SNAPSHOT = ROOT / "tests" / "data" / "object_info.json"
NOTES = {"MarkdownNote", "Note"}
FILES = {
    "model_name",
    "vae_name",
    "ckpt_name",
    "lora_name",
    "image",
    "folder",
}  # combos whose options are installed files


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def inputs_of(info: dict) -> dict[str, list]:
    """Required, then optional inputs of a node class by name."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def is_combo(spec) -> bool:
    return isinstance(spec[0], list) or spec[0] == "COMBO"


def options_of(spec) -> list:
    return spec[0] if isinstance(spec[0], list) else spec[1].get("options", [])


def is_widget(spec) -> bool:
    """Whether an input is a widget and not only a socket."""
    options = spec[1] if len(spec) > 1 else {}
    return (spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN") or is_combo(spec)) and not options.get("forceInput")


def to_api(workflow: dict, object_info: dict) -> dict:
    """The API prompt of a saved workflow: links by id, widget values by position, notes left out."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        linked = {i["name"]: sources[i["link"]] for i in node["inputs"] if i.get("link") is not None}
        values = list(node.get("widgets_values", []))
        inputs = {}
        for name, spec in inputs_of(object_info[node["type"]]).items():
            options = spec[1] if len(spec) > 1 else {}
            if is_widget(spec):
                if not values and name in object_info[node["type"]]["input"].get("optional", {}):
                    continue  # added after the workflow was saved; the default applies
                inputs[name] = values.pop(0)
                if options.get("control_after_generate") or options.get("image_upload"):
                    values.pop(0)
            if name in linked:
                inputs[name] = linked[name]
        assert not values, f"{node['type']} has {len(values)} extra widget values"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def problems(prompt: dict, object_info: dict) -> list[str]:
    """The reasons for which ComfyUI would refuse an API prompt."""
    found = []
    for node_id, node in prompt.items():
        info = object_info.get(node["class_type"])
        if info is None:
            found.append(f"{node_id}: no node class {node['class_type']}")
            continue
        specs = inputs_of(info)
        for name in info["input"].get("required", {}):
            if name not in node["inputs"]:
                found.append(f"{node_id} {node['class_type']}: {name} is missing")
        for name, value in node["inputs"].items():
            if name not in specs:
                found.append(f"{node_id} {node['class_type']}: no input {name}")
                continue
            found += [
                f"{node_id} {node['class_type']}.{name}: {p}"
                for p in _value_problems(name, specs[name], value, prompt, object_info)
            ]
    return found


def _value_problems(name, spec, value, prompt, object_info):
    options = spec[1] if len(spec) > 1 else {}
    if isinstance(value, list):
        source = prompt.get(value[0])
        if source is None:
            return [f"linked to {value[0]}, which is not there"]
        outputs = object_info[source["class_type"]]["output"]
        if value[1] >= len(outputs):
            return [f"linked to output {value[1]} of {source['class_type']}"]
        kind = outputs[value[1]]
        wanted = str(spec[0]).split(",")
        return [] if "*" in (kind, *wanted) or kind in wanted else [f"needs {spec[0]}, gets {kind}"]
    if is_combo(spec):
        return [] if name in FILES or value in options_of(spec) else [f"{value!r} is not an option"]
    if spec[0] in ("INT", "FLOAT"):
        low, high = options.get("min", value), options.get("max", value)
        return [] if low <= value <= high else [f"{value} is not between {low} and {high}"]
    return [] if spec[0] in ("STRING", "BOOLEAN") else [f"needs a link of type {spec[0]}"]
