"""Writes the table of docs/stock-nodes.md from the results of tests/comfyui.

python -m pytest tests/comfyui --junitxml=results.xml
python tests/compatibility.py results.xml
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "stock-nodes.md"
BEGIN, END = "<!-- stock nodes: begin -->", "<!-- stock nodes: end -->"
GROUPS = {  # test function: what its cases are, as a person would say it
    "test_sampler": "KSampler: samplers (JanusFlow)",
    "test_scheduler": "KSampler: schedulers (JanusFlow)",
    "test_guider": "Guiders (JanusFlow)",
    "test_model_node": "Model nodes (JanusFlow)",
    "test_model_node_that_keeps_the_picture": "Model nodes that keep the picture (JanusFlow)",
    "test_conditioning_node": "Conditioning nodes (JanusFlow)",
    "test_lora_key_style": "LoRA key styles",
    "test_token_latents_in_latent_nodes": "Latent nodes on token latents (Janus-Pro)",
    "test_tiled_vq": "Tiled VAE nodes (Janus-Pro)",
}
SINGLE = {
    "test_lora_loader_on_model_and_clip": "LoraLoader on MODEL and CLIP",
    "test_hook_lora_with_a_schedule": "Hook LoRA with keyframes",
    "test_train_lora_and_back": "Train LoRA, Save LoRA Weights and back",
    "test_text_generate": "Generate Text with a picture",
    "test_weights_in_8_bits": "int8 and fp8_e4m3fn weights, ModelSave and back",
    "test_a_trained_lora_in_comfyui": "LoraLoaderModelOnly with a LoRA trained by janus_core",
    "test_a_picture_is_continued_below_its_top_rows": "a picture continued below its top rows (Janus-Pro)",
    "test_a_saved_model_loads_again": "ModelSave, CheckpointSave and back",
    "test_flow_inpainting_keeps_what_is_outside_the_mask": "Set Latent Noise Mask (JanusFlow)",
    "test_a_noise_mask_redraws_only_its_tokens": "Set Latent Noise Mask (Janus-Pro)",
    "test_saved_token_latents_load_and_decode": "Save Latent, Load Latent",
    "test_captions_chain_into_stock_data_set_nodes": "Load Image (from Folder), Save Image-Text (to Folder)",
    "test_custom_sampler_with_our_scheduler": "SamplerCustomAdvanced",
    "test_previews_show_the_picture_as_it_forms": "Live previews",
}


def results(path: str) -> dict[str, dict[str, bool]]:
    """{test function: {case: passed}}, skipped cases left out."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        function, _, parameter = case.get("name").partition("[")
        if case.find("skipped") is None:
            passed = case.find("failure") is None and case.find("error") is None
            found.setdefault(function, {})[parameter.rstrip("]")] = passed
    return found


def table(found: dict[str, dict[str, bool]]) -> str:
    lines = ["| what | works | does not |", "|---|---|---|"]
    for function, title in GROUPS.items():
        cases = found.get(function, {})
        good = ", ".join(name for name, passed in cases.items() if passed)
        bad = ", ".join(name for name, passed in cases.items() if not passed)
        lines.append(f"| {title} | {good} | {bad} |")
    together = {title: found[function] for function, title in SINGLE.items() if function in found}
    good = ", ".join(title for title, cases in together.items() if all(cases.values()))
    bad = ", ".join(title for title, cases in together.items() if not all(cases.values()))
    return "\n".join([*lines, f"| Chains | {good} | {bad} |"])


def main():
    text = DOCUMENT.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{table(results(sys.argv[1]))}\n{END}"
    DOCUMENT.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
