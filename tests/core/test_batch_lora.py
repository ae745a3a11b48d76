"""--lora of batch and serve, with the demo's LoRA: the images of `generate --lora`, its record, and refusals."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from janus_core.cli import main, parser
from janus_core.files import file_hash

ROOT = Path(__file__).resolve().parents[2]
MODEL, LORA = ROOT / "demo" / "janus-pro-demo", ROOT / "demo" / "loras" / "janus-pro-demo-night.safetensors"
COMMON = ["--model", str(MODEL), "--device", "cpu", "--dtype", "fp32"]
SMALL = ["--size", "64x64"]
PROMPT = "a red circle on a white background"


def generate(out: Path, *more) -> bytes:
    """The pixels of `generate` with seed 4."""
    assert main(["generate", PROMPT, *COMMON, *SMALL, "--seed", "4", "--out", str(out), *more]) == 0
    return Image.open(out).tobytes()


def batch(folder: Path, *more, status=0) -> Path:
    """Runs a job with seed 4; gives the output's path."""
    jobs = folder / "jobs.jsonl"
    jobs.write_text(json.dumps({"id": "a", "prompt": PROMPT, "seed": 4}))
    out = folder / "out"
    assert (
        main(["batch", "generate", str(jobs), *COMMON, *SMALL, "--out", str(out), "--batch-size", "1", *more]) == status
    )
    return out / "a.png"


def test_a_batch_run_applies_and_records_it(tmp_path, capsys):
    strong, whole = ["--lora", f"{LORA}:1.5"], ["--lora", str(LORA)]
    made = batch(tmp_path, *strong)
    pixels = Image.open(made).tobytes()
    assert pixels == generate(tmp_path / "x.png", *strong)
    assert pixels not in (generate(tmp_path / "x.png"), generate(tmp_path / "x.png", *whole))

    record = json.loads((tmp_path / "out.run" / "outputs" / "a.png.json").read_text())
    assert record["model"]["loras"] == [{"sha256": file_hash(LORA), "strength": 1.5}]
    assert json.loads(Image.open(made).text["parameters"])["loras"] == [f"{file_hash(LORA)[:16]}:1.5"]

    copy = tmp_path / "renamed.safetensors"
    copy.write_bytes(LORA.read_bytes())
    before = made.read_bytes()
    batch(tmp_path, "--lora", f"{copy}:1.5")  # the same LoRA by another name: nothing to do
    other = tmp_path / "other.safetensors"
    other.write_bytes(LORA.read_bytes()[:-1] + bytes([LORA.read_bytes()[-1] ^ 1]))
    for wrong in (whole, [], ["--lora", f"{other}:1.5"], [*strong, *whole]):
        capsys.readouterr()
        batch(tmp_path, *wrong, status=1)
        error = capsys.readouterr().err
        assert "made with another LoRA or strength: choose another --out" in error and error.count("\n") == 1
        assert made.read_bytes() == before
    batch(tmp_path, *whole, "--overwrite")
    assert Image.open(made).tobytes() == generate(tmp_path / "x.png", *whole)


def test_the_server_applies_it_to_images_and_answers(tmp_path, capsys):
    pytest.importorskip("fastapi")
    testing = pytest.importorskip("starlette.testclient")
    from janus_core.serve.cli import _app

    image = tmp_path / "x.png"
    with_lora = ["--lora", str(LORA), "--lora", f"{LORA}:1.5"]
    pixels = generate(image, *with_lora)
    assert pixels != generate(tmp_path / "plain.png")
    question, tokens = "Describe this image.", 6
    capsys.readouterr()
    assert main(["describe", str(image), question, *COMMON, *with_lora, "--max-new-tokens", str(tokens)]) == 0
    answer = capsys.readouterr().out.strip()

    _, app = _app(parser().parse_args(["serve", *COMMON, *with_lora, "--batch-size", "2"]))
    url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    with testing.TestClient(app) as client:
        found = client.post("/v1/images/generations", json={"prompt": PROMPT, "seed": 4, "size": "64x64"}).json()
        said = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": tokens}).json()
    served = Image.open(io.BytesIO(base64.b64decode(found["data"][0]["b64_json"])))
    assert served.tobytes() == pixels
    assert said["choices"][0]["message"]["content"].strip() == answer


@pytest.fixture
def wrong(tmp_path, golden):
    """{what is wrong: (--lora, what the sentence says)}."""
    (tmp_path / "text.safetensors").write_text("not a LoRA")
    return {
        "missing": (tmp_path / "absent.safetensors", "There is no file"),
        "damaged": (tmp_path / "text.safetensors", "text.safetensors"),
        "of another model": (golden("ar-a").folder / "model.safetensors", "does not fit the model"),
        "strength": (f"{LORA}:1000", "strength"),
        "user": ("~nobody-has-this-name/lora.safetensors", "not a usable path"),
    }


@pytest.mark.parametrize("why", ["missing", "damaged", "of another model", "strength", "user"])
def test_a_lora_that_cannot_be_used_is_one_sentence_before_anything_is_made(wrong, why, tmp_path, capsys):
    lora, sentence = wrong[why]
    batch(tmp_path, "--lora", str(lora), status=1)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()
    assert main(["serve", "--model", str(MODEL), "--device", "cpu", "--lora", str(lora)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and all(sentence in error for error in errors)
