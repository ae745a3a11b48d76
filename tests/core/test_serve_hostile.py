"""Requests that no client should send: each is answered 4xx in OpenAI's shape, and the server goes on."""

import base64
import io
import json
import struct
import zlib

import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from serving import serving  # noqa: E402

import janus_core  # noqa: E402


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG file of a few bytes that claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(2**20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def uri(data: bytes, kind="png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def chat(content, **more) -> dict:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


def image_part(url) -> list:
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]


IMAGES = [
    {},
    {"prompt": ""},
    {"prompt": 3},
    {"prompt": ["a"]},
    {"prompt": "\ud800"},
    {"prompt": "x" * 200000},
    {"prompt": "a", "n": 0},
    {"prompt": "a", "n": 10**6},
    {"prompt": "a", "n": True},
    {"prompt": "a", "n": 1.5},
    {"prompt": "a", "size": "0x0"},
    {"prompt": "a", "size": "99999x99999"},
    {"prompt": "a", "size": "100x100"},
    {"prompt": "a", "size": [96, 96]},
    {"prompt": "a", "response_format": "url"},
    {"prompt": "a", "seed": "x"},
    {"prompt": "a", "seed": 2**70},
    {"prompt": "a", "guidance_scale": 1e9},
    {"prompt": "a", "guidance_scale": float("nan")},
    {"prompt": "a", "guidance_scale": float("inf")},
    {"prompt": "a", "num_inference_steps": 3},
    {"prompt": "a", "temperature": -1},
    {"prompt": "a", "model": "other"},
    {"prompt": "a", "model": {"a": 1}},
    {"prompt": "a", "image": "x"},
    {"prompt": "a", "stream": True},
]
CHATS = [
    {},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "assistant", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x"}] * 2},
    {"messages": [{"role": "user", "content": "x"}] * 1000},
    chat("<image_placeholder>"),
    chat("x " * 100000),
    chat("x", max_tokens=0),
    chat("x", n=2),
    chat("x", temperature=9),
    chat("x", logprobs=True),
    chat("x", tools=[{"type": "function"}]),
    chat("x", response_format={"type": "json_object"}),
    chat("x", stop=[1]),
    chat("x", roles="Bot"),
    chat("x", unknown=1),
    chat([{"type": "input_audio", "input_audio": {}}]),
    chat([3]),
    chat(image_part("https://example.com/x.png")),
    chat(image_part("file:///etc/passwd")),
    chat(image_part("/etc/passwd")),
    chat(image_part(7)),
    chat(image_part("data:text/plain;base64,aGk=")),
    chat(image_part("data:image/png;base64,!!!")),
    chat(image_part(uri(b"not an image"))),
    chat(image_part(uri(bomb(30000)))),
    chat(image_part(uri(bomb(8200)))),
    chat(image_part(uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml"))),
    chat(image_part(uri(b"x" * 3 * 2**20))),
]


@pytest.fixture(scope="module")
def address(golden):
    pipe = janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)
    with serving(pipe, most_body_bytes=8 * 2**20, most_image_bytes=2 * 2**20) as (address, _):
        yield address
        good = httpx.post(f"{address}/v1/images/generations", json={"prompt": "a cat"}, timeout=60)
        assert good.status_code == 200  # after all that, the server serves


def check(answer, low=400, high=500):
    assert low <= answer.status_code < high, answer.text[:300]
    error = answer.json()["error"]
    assert isinstance(error["message"], str) and error["message"] and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/chat/completions"])
def test_bodies_that_cannot_be_used(address, path):
    for body in IMAGES if "images" in path else CHATS:
        check(httpx.post(address + path, content=json.dumps(body), timeout=60))


def test_a_list_that_is_too_long_is_told_its_limit(address):
    answer = httpx.post(f"{address}/v1/chat/completions", json=chat("x", stop=["y"] * 17))
    check(answer)
    assert "must be a list of 0 to 16, each a text" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100000, b'{"prompt": 1e99999}'])
def test_bodies_that_are_no_object(address, body):
    for path in ("/v1/images/generations", "/v1/chat/completions"):
        check(httpx.post(address + path, content=body))


def test_bodies_that_are_too_large(address):
    answer = httpx.post(f"{address}/v1/images/generations", content=b"x" * (9 * 2**20))
    assert answer.status_code == 413
    check(answer)
    parts = (b"x" * 2**20 for _ in range(9))  # in chunks, without a length
    assert httpx.post(f"{address}/v1/chat/completions", content=parts).status_code == 413


def test_paths_and_methods_that_do_not_exist(address):
    for method, path in (
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/v1/images/generations"),
        ("POST", "/v1/models/x"),
    ):
        check(httpx.request(method, address + path))


def test_forms_that_cannot_be_used(address):
    pytest.importorskip("python_multipart")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, format="PNG")
    good, path = buffer.getvalue(), f"{address}/v1/images/edits"
    for files, data in [
        ({}, {"prompt": "x"}),
        ({"image": b""}, {"prompt": "x"}),
        ({"image": b"not an image"}, {"prompt": "x"}),
        ({"image": bomb(30000)}, {"prompt": "x"}),
        ({"image": b"x" * 3 * 2**20}, {"prompt": "x"}),
        ({"image": good}, {}),
        ({"image": good}, {"prompt": "x", "n": "many"}),
        ({"image": good}, {"prompt": "x", "n": "99"}),
        ({"image": good, "mask": good}, {"prompt": "x"}),
        ({"image": good}, {"prompt": "x", "other": "1"}),
        ({"image": good}, {f"f{k}": "1" for k in range(100)}),
    ]:
        check(httpx.post(path, files=files or {"other": b"x"}, data=data, timeout=60))
    check(httpx.post(path, content=b"x", headers={"Content-Type": "multipart/form-data"}))
    check(httpx.post(path, content=b"x", headers={"Content-Type": "multipart/form-data; boundary=y"}))
    check(httpx.post(path, json={"prompt": "x"}))
