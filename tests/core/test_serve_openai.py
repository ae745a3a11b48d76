"""The server under the real `openai` client: images, edits, chat, streaming, errors."""

import asyncio
import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from serving import serving  # noqa: E402

import janus_core  # noqa: E402
from janus_core.serve.batcher import Batcher, Job  # noqa: E402
from janus_core.serve.work import AnswerWanted, Model, certain_text  # noqa: E402

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def pipe(golden):
    return janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def server(pipe):
    with serving(pipe) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=60)


def image_of(item) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def difference(a, b) -> int:
    return abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max()


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def question(text: str, *images: Image.Image) -> list:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["janus"] and client.models.retrieve("janus").id == "janus"


def test_images_are_those_of_the_pipeline(client, pipe):
    extra = {"seed": 5, "guidance_scale": 3.0, "negative_prompt": "a cat", "temperature": 0.8, "top_k": 50}
    found = client.images.generate(
        model="janus", prompt=PROMPT, n=4, size="96x96", response_format="b64_json", extra_body=extra
    )
    settings = {"guidance": 3.0, "negative_prompt": "a cat", "temperature": 0.8, "top_k": 50}
    for k, image in enumerate(pipe(PROMPT, num_images=4, seed=5, **settings)):
        assert difference(image_of(found.data[k]), image) <= 1
    wide = client.images.generate(prompt=PROMPT, size="128x64", extra_body={"seed": 1})
    assert image_of(wide.data[0]).size == (128, 64)
    several = [client.images.generate(prompt=PROMPT).data[0].b64_json for _ in range(2)]
    assert several[0] != several[1]


def test_requests_that_wait_together_are_one_batch(client, server, pipe, monkeypatch):
    sizes, gate, original = [], threading.Event(), pipe.generate_tokens

    def counted(prompts, **settings):
        sizes.append(len(prompts))
        gate.wait(60)
        return original(prompts, **settings)

    monkeypatch.setattr(pipe, "generate_tokens", counted)
    texts = [f"a {colour} circle" for colour in ("red", "green", "blue", "yellow", "black", "white")]

    def ask(k):
        return client.images.generate(prompt=texts[k], extra_body={"seed": k, "guidance_scale": 2.0 + (k == 5)})

    def wait_until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(ask, 0)]
        wait_until(lambda: sizes == [1])  # it is under way alone when the others come
        answers += [pool.submit(ask, k) for k in range(1, 6)]
        wait_until(lambda: server[1].queues["janus"].length == 5)
        gate.set()
        found = [answer.result() for answer in answers]
    assert sorted(sizes) == [1, 1, 4]
    for k, one in enumerate(found):
        assert difference(image_of(one.data[0]), pipe(texts[k], seed=k, guidance=2.0 + (k == 5))[0]) <= 1


def test_a_burst_is_one_batch(monkeypatch):
    """A batch waits as long as one more request comes each time, until it is full."""
    batches, asyncio_sleep = [], asyncio.sleep

    def run(jobs, callback):
        batches.append(len(jobs))
        return [None for _ in jobs]

    async def requests():
        arriving = 5
        batcher = Batcher(run, batch_size=4, queue_size=8, wait=0.5)
        results = [batcher.submit(Job("same", 1, None))]

        async def sleep(seconds):
            nonlocal arriving
            if seconds != 0.5:  # of the server in the other thread
                return await asyncio_sleep(seconds)
            arriving -= 1
            if arriving:
                results.append(batcher.submit(Job("same", 1, None)))

        monkeypatch.setattr(asyncio, "sleep", sleep)
        while len(results) < 4 or not all(result.done() for result in results):
            await asyncio.wait(results)
        results.append(batcher.submit(Job("same", 1, None)))
        await asyncio.wait(results)
        await batcher.close()

    asyncio.run(requests())
    assert batches == [4, 2]


def test_edits(client, golden, pipe):
    path = golden("ar-a").folder / "picture.png"
    pytest.importorskip("python_multipart")
    extra = {"seed": 3, "image_guidance": 4.0}
    found = client.images.edit(image=path.open("rb"), prompt="make it red", n=2, extra_body=extra)
    for item, image in zip(
        found.data, pipe.edit(Image.open(path), "make it red", seed=3, num_images=2, image_guidance=4)
    ):
        assert difference(image_of(item), image) <= 1
    with pytest.raises(openai.BadRequestError, match="image"):
        client.images.edit(image=("x.png", b"not an image"), prompt="make it red")


def test_chat_about_images(client, golden, pipe):
    golden = golden("ar-a")
    image, text = Image.open(golden.folder / "picture.png"), golden.text["und.question"]
    found = client.chat.completions.create(model="janus", messages=question(text, image), max_tokens=12)
    (expected,) = pipe.describe(image, text, max_new_tokens=12)
    assert found.choices[0].message.content == expected.lstrip()
    assert found.choices[0].finish_reason in ("length", "stop") and 0 < found.usage.completion_tokens <= 12
    assert found.usage.prompt_tokens > pipe.model.params.siglip.tokens
    two = [image, image.rotate(90)]
    found = client.chat.completions.create(model="janus", messages=question(text, *two), max_tokens=5)
    (expected,) = pipe.describe([two], "<image_placeholder>\n<image_placeholder>\n" + text, max_new_tokens=5)
    assert found.choices[0].message.content == expected.lstrip()
    system = [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}]
    found = client.chat.completions.create(
        model="janus", messages=system, max_tokens=5, temperature=1.0, seed=3, top_p=1.0
    )
    (expected,) = pipe.describe(None, "Hello", system_prompt="", max_new_tokens=5, temperature=1.0, seed=3, top_p=1.0)
    assert found.choices[0].message.content == expected.lstrip()


def test_a_streamed_answer_is_the_answer(client, golden):
    golden = golden("ar-a")
    messages = question(golden.text["und.question"], Image.open(golden.folder / "picture.png"))
    asked = {"model": "janus", "messages": messages, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content and sum(map(bool, texts)) > 1
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    first = whole.choices[0].message.content[:6]
    stopped = client.chat.completions.create(**asked, stop=[whole.choices[0].message.content[6:9]])
    assert first.startswith(stopped.choices[0].message.content) and stopped.choices[0].finish_reason == "stop"


def test_a_stop_text_of_several_tokens_ends_the_answer(client, golden, pipe, monkeypatch):
    """Streamed or not, nothing of the stop text is sent, and nothing is generated after it."""
    golden = golden("ar-a")
    image, text = Image.open(golden.folder / "picture.png"), golden.text["und.question"]
    whole = pipe.describe(image, text, max_new_tokens=24)[0].lstrip()
    stop = whole[7:14]
    needed = next(n for n in range(1, 25) if stop in pipe.describe(image, text, max_new_tokens=n)[0])
    assert 3 < needed < 24 and whole.count(stop) == 1
    asked = {"model": "janus", "messages": question(text, image), "max_tokens": 24, "stop": ["none", stop]}
    passes, original = [], pipe.model.llama.forward
    monkeypatch.setattr(pipe.model.llama, "forward", lambda *a, **k: (passes.append(0), original(*a, **k))[1])
    found = client.chat.completions.create(**asked)
    assert found.choices[0].message.content == whole[:7] and found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens == needed == len(passes)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole[:7] and sum(map(bool, texts)) > 1
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage == found.usage
    assert len(passes) == 2 * needed


def test_what_is_held_back_of_a_stop_text_is_sent_when_it_does_not_come(client, golden, pipe):
    golden = golden("ar-a")
    image, text = Image.open(golden.folder / "picture.png"), golden.text["und.question"]
    whole = pipe.describe(image, text, max_new_tokens=24)[0].lstrip()
    for stop in (whole[:9] + "#", whole[-1] + "#"):  # its beginning is the answer's, or the answer ends with it
        asked = {"model": "janus", "messages": question(text, image), "max_tokens": 24, "stop": stop, "stream": True}
        texts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked)]
        assert "".join(texts) == whole


@pytest.mark.parametrize(
    ("text", "stops", "certain"),
    [
        ("a cat", (), "a cat"),
        ("a cat\ufffd\ufffd", (), "a cat"),
        ("a cat", ("at a", "t the"), "a c"),
        ("a cat\ufffd", ("at\N{CAT FACE}",), "a c"),
        ("aa", ("aaa",), ""),
        ("a cat", ("at",), "a cat"),  # whole stop texts are looked for before
    ],
)
def test_what_of_a_text_no_later_token_changes(text, stops, certain):
    assert certain_text(text, stops) == certain


def test_answers_of_a_batch_end_at_their_own_stop_texts(golden, pipe):
    """An answer is the same as on its own, and the batch ends with the last of them."""
    golden = golden("ar-a")
    image, text = Image.open(golden.folder / "picture.png"), golden.text["und.question"]
    first, second = (one.lstrip() for one in pipe.describe([image, image.rotate(90)], text, max_new_tokens=24))
    message = ({"role": "user", "content": "<image_placeholder>\n" + text},)

    def run(*pairs) -> tuple[list, int]:
        steps, settings = [], {"max_new_tokens": 24, "temperature": 0.0}
        wanted = [AnswerWanted(message, (one,), 0, settings, {}, stop) for one, stop in pairs]
        jobs = [Job(one.setting, 1, one, result=None) for one in wanted]
        return Model("janus", pipe, 4).run(jobs, lambda done, total: steps.append(done) or True), max(steps)

    early = (image, (first[7:9], first[5:20]))  # the second one would begin earlier, but is completed later
    late = (image.rotate(90), (second[10:24],))
    (a, b), steps = run(early, late)
    assert (a.text, b.text) == (first[:7], second[:10]) and a.reason == b.reason == "stop"
    assert a.tokens < b.tokens == steps < 24
    assert [a, b] == [run(early)[0][0], run(late)[0][0]]


def test_a_client_that_leaves_frees_the_model(client, server, pipe, monkeypatch):
    address, inner = server
    passes, original = [], pipe.model.llama.forward

    def slow(*args, **kwargs):
        passes.append(time.sleep(0.02))
        return original(*args, **kwargs)

    monkeypatch.setattr(pipe.model.llama, "forward", slow)
    impatient = client.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(model="janus", messages=question("Hi"), max_tokens=2000)
    stream = client.chat.completions.create(model="janus", messages=question("Hi"), max_tokens=2000, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while inner.queues["janus"].running or inner.queues["janus"].length:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(passes) < 500


@pytest.fixture
def gate(pipe, monkeypatch):
    """Images are generated once it is set."""
    gate, original = threading.Event(), pipe.generate_tokens
    monkeypatch.setattr(pipe, "generate_tokens", lambda *a, **k: (gate.wait(60), original(*a, **k))[1])
    yield gate
    gate.set()


def status_of(client) -> int:
    try:
        client.images.generate(prompt=PROMPT)
        return 200
    except openai.APIStatusError as error:
        assert error.body["message"] and error.body["type"]
        return error.status_code


def test_a_full_queue_is_429(pipe, gate):
    with serving(pipe, batch_size=1, queue_size=2) as (address, inner), ThreadPoolExecutor(8) as pool:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
        deadline = time.monotonic() + 60

        def wait_until(condition):
            while not condition():
                assert time.monotonic() < deadline
                time.sleep(0.02)

        answers = [pool.submit(status_of, client)]
        wait_until(lambda: "janus" in inner.queues and inner.queues["janus"].running)
        answers += [pool.submit(status_of, client) for _ in range(7)]
        wait_until(lambda: sum(answer.done() for answer in answers) == 5)  # one is under way, two wait
        gate.set()
        assert sorted(answer.result() for answer in answers) == [200] * 3 + [429] * 5


def test_an_answer_that_takes_too_long_is_503(pipe, gate):
    with serving(pipe, timeout=0.3) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
        assert status_of(client) == 503
        gate.set()


def test_the_key_is_checked_everywhere_but_at_health(pipe):
    import httpx

    with serving(pipe, api_key="secret") as (address, _):
        for path in ("/v1/models", "/metrics", "/none"):
            answer = httpx.get(address + path, headers={"Authorization": "Bearer wrong"})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        assert [model.id for model in client.models.list()] == ["janus"]
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="other", max_retries=0).models.list()


def test_metrics(client, server):
    import httpx

    before = httpx.get(f"{server[0]}/metrics").text
    client.images.generate(prompt=PROMPT, n=2)
    text = httpx.get(f"{server[0]}/metrics").text

    def value(text):
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("janus_images_total"))

    assert value(text) == value(before) + 2 and "janus_batch_size_bucket" in text and "janus_waiting" in text
    assert 'janus_requests_total{path="/v1/images/generations",status="200"}' in text
