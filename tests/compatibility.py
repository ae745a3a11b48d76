"""Writes the table of docs/stock-nodes.md from the results of tests/comfyui.

python -m pytest tests/comfyui --junitxml=results.xml
python tests/compatibility.py results.xml
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "stock-nodes.md"
TESTS = Path(__file__).resolve().parent / "comfyui"
BEGIN, END = "<!-- stock nodes: begin -->", "<!-- stock nodes: end -->"
GROUPS = {  # test function: the table's title for its cases
    "test_sampler": "KSampler: samplers (JanusFlow)",
    "test_scheduler": "KSampler: schedulers (JanusFlow)",
    "test_guider": "Guiders (JanusFlow)",
    "test_model_node": "Model nodes (JanusFlow)",
    "test_model_node_that_does_not_change_the_image": "Model nodes that do not change the image (JanusFlow)",
    "test_model_node_without_effect": "Model nodes for layers that JanusFlow lacks",
    "test_conditioning_node": "Conditioning nodes (JanusFlow)",
    "test_lora_key_style": "LoRA key styles",
    "test_token_latents_in_latent_nodes": "Latent nodes on token latents (Janus-Pro)",
    "test_tiled_vq": "Tiled VAE nodes (Janus-Pro)",
}
WITHOUT_EFFECT = ("test_model_node_without_effect",)  # where a case that passes has no effect
SINGLE = {
    "test_lora_loader_on_model_and_clip": "LoraLoader on MODEL and CLIP",
    "test_hook_lora_with_a_schedule": "Hook LoRA with keyframes",
    "test_train_lora_then_load_it": "Train LoRA, Save LoRA Weights, Load LoRA",
    "test_a_compiled_model_gives_the_same_latent": "TorchCompileModel",
    "test_text_generate": "Generate Text with an image",
    "test_weights_in_8_bits": "int8 and fp8_e4m3fn weights, also saved with ModelSave",
    "test_a_trained_lora_is_the_same_everywhere": "LoraLoaderModelOnly with a LoRA trained by janus_core",
    "test_an_image_is_continued_below_given_rows": "an image continued below given rows (Janus-Pro)",
    "test_a_saved_model_can_be_loaded": "files of ModelSave and CheckpointSave",
    "test_flow_inpainting_changes_nothing_outside_the_mask": "Set Latent Noise Mask (JanusFlow)",
    "test_a_noise_mask_resamples_only_its_tokens": "Set Latent Noise Mask (Janus-Pro)",
    "test_saved_token_latents_load_and_decode": "Save Latent, Load Latent",
    "test_answers_feed_stock_dataset_nodes": "Load Image (from Folder), Save Image-Text (to Folder)",
    "test_custom_sampler_with_our_scheduler": "SamplerCustomAdvanced",
    "test_previews_during_sampling": "Live previews",
    "test_a_file_of_clip_save_can_be_loaded": "files of CLIPSave",
}


class Case(NamedTuple):
    """Properties are what the test recorded: `condition`, under which alone the case is right, or `effect`."""

    passed: bool
    properties: dict[str, str]


def results(path: str) -> dict[str, dict[str, Case]]:
    """{test function: {name of the case: Case}}, skipped cases left out."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        function, _, parameter = case.get("name").partition("[")
        if case.find("skipped") is None:
            passed = case.find("failure") is None and case.find("error") is None
            properties = {one.get("name"): one.get("value") for one in case.iter("property")}
            found.setdefault(function, {})[parameter.rstrip("]")] = Case(passed, properties)
    return found


def columns(function: str, cases: dict[str, Case]) -> list[str]:
    """The names that are right; right under a condition; without effect or wrong."""
    right, conditional, others = [], {}, []
    for name, case in cases.items():
        if not case.passed:
            others.append(f"{name} (wrong)")
        elif "condition" in case.properties:
            conditional.setdefault(case.properties["condition"], []).append(name)
        elif "effect" in case.properties:
            others.append(f"{name} ({case.properties['effect']})")
        else:
            (others if function in WITHOUT_EFFECT else right).append(name)
    with_condition = "; ".join(f"with {condition}: {', '.join(names)}" for condition, names in conditional.items())
    return [", ".join(right), with_condition, ", ".join(others)]


def table(found: dict[str, dict[str, Case]]) -> str:
    lines = ["| what | right | right with a condition | no effect, or wrong |", "|---|---|---|---|"]
    for function, title in GROUPS.items():
        lines.append(f"| {title} | {' | '.join(columns(function, found.get(function, {})))} |")
    together = {title: found[function] for function, title in SINGLE.items() if function in found}
    passed = {title: all(case.passed for case in cases.values()) for title, cases in together.items()}
    good = ", ".join(title for title, right in passed.items() if right)
    bad = ", ".join(f"{title} (wrong)" for title, right in passed.items() if not right)
    return "\n".join([*lines, f"| Chains | {good} | | {bad} |"])


def main():
    text = DOCUMENT.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{table(results(sys.argv[1]))}\n{END}"
    DOCUMENT.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
