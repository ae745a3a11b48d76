"""Recorded decode steps: the tokens of plain sampling, and plain sampling wherever recording does not work."""

import logging
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from cpu_graph import record
from janus_core.sampling.choice import Choice
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import janus_core
from janus_core.checkpoint import build_model, read_checkpoint
from janus_core.sampling import decoding, recording, replay, tokens

recordable = pytest.mark.skipif(torch.__version__ < "2.6", reason="this torch cannot do its operations again in a test")


@pytest.fixture(scope="module")
def ar(golden):
    return janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)


def draw(ar, num_images=1, **settings):
    """The last step and all logits, with one token given."""
    keep = (torch.full((num_images, 36), 7), torch.arange(36).expand(num_images, -1) == 5)
    sides = ar.sides("a cat", "a blurry photo of a cat")
    with torch.inference_mode():
        steps = tokens.sample_steps(ar.model, *sides, 36, seed=3, indices=range(num_images), keep=keep, **settings)
        every = [(step, step.logits.clone()) for step in steps]
    return every[-1][0], torch.stack([logits for _, logits in every])


@recordable
@pytest.mark.parametrize("choice", [Choice(), Choice(0), Choice(0.8, 50, 0.9)])
@pytest.mark.parametrize("num_images,interval", [(1, (0.0, 1.0)), (3, (0.0, 1.0)), (2, (0.2, 0.7)), (1, (0.0, 0.0))])
def test_a_recorded_step_draws_the_same_tokens(ar, num_images, interval, choice):
    made = []

    def counting(step):
        made.append(record(step))
        return made[-1]

    settings = dict(num_images=num_images, cfg_interval=interval, choice=choice)
    (plain, logits), (replayed, same) = draw(ar, **settings), draw(ar, record=counting, **settings)
    assert torch.equal(replayed.tokens, plain.tokens) and (replayed.tokens[:, 5] == 7).all()
    assert torch.allclose(logits, same, atol=1e-4)
    assert len(made) == (2 if interval == (0.2, 0.7) else 1)  # anew when the negative rows go


def fails(step):
    raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


def draws_nonsense(step):
    def again():
        step()
        step.hidden.zero_()

    return again


def overflows(step):
    def again():
        step()
        step.hidden.fill_(torch.nan)
        step.run.finite.fill_(False)

    return again


@pytest.mark.parametrize(
    "record,problem", [(fails, "not permitted when"), (draws_nonsense, "something else"), (overflows, "else")]
)
def test_what_cannot_be_recorded_is_drawn_without(ar, record, problem, caplog):
    with caplog.at_level(logging.WARNING):
        (plain, logits), (drawn, same) = draw(ar, 2), draw(ar, 2, record=record)
    assert torch.equal(drawn.tokens, plain.tokens) and torch.allclose(logits, same, atol=1e-4)
    (message,) = (r.getMessage() for r in caplog.records)
    assert problem in message and "more of it" not in message


def test_output_that_is_not_finite_is_refused(ar, golden):
    broken = janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)
    broken.model.llama.norm.weight.fill_(float("nan"))
    with pytest.raises(janus_core.SamplingError, match="finite"):
        draw(broken, record=record)


class Devices(TorchDispatchMode):
    """Notes operations with a tensor of the CPU among their arguments or results."""

    def __init__(self):
        super().__init__()
        self.on_cpu = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in tree_leaves((args, kwargs, out))):
            self.on_cpu.append(str(func))
        return out


def test_nothing_of_a_step_is_on_the_host(golden):
    """A copy from the host cannot be recorded; the model stands on the meta device in a GPU's place."""
    with torch.inference_mode():
        model = build_model(read_checkpoint(golden("ar-a").folder), torch.nn, dtype=torch.float32).to("meta")
        rows = [(torch.empty(n, model.params.llama.hidden_size, device="meta"), 1) for n in (9, 12)]
        cache, starts, hidden = decoding.prefill(model, rows, 35)
        drawer = decoding.Draw(
            Choice(0.8, 50, 0.9), torch.empty(1, dtype=torch.long, device="meta"), 5.0, (3, 30), None
        )
        out = torch.empty(1, 36, dtype=torch.long, device="meta")
        run = decoding.Run(model, drawer, cache, starts.to("meta"), hidden, out, torch.empty((), device="meta").bool())
        step = replay.DecodeStep(run, replay.PlainDecoder(model.llama, cache, run.starts), 1)
        with Devices() as devices:
            step()
            step.make_noise(32)
    assert step.logits.shape == (1, model.params.vq.codebook_size) and devices.on_cpu == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_draws_the_same_tokens(golden, dtype, caplog):
    pipe = janus_core.load(golden("ar-a").folder, device="cuda", dtype=dtype)
    settings = dict(num_images=2, seed=3, guidance_interval=(0.1, 0.8), top_k=50, top_p=0.9)
    plain = pipe.generate_tokens("a cat", cuda_graphs=False, **settings)
    drawn = pipe.generate_tokens("a cat", **settings)
    assert not caplog.records
    if dtype == torch.float32:
        assert torch.equal(drawn, plain)
    else:  # the kernels round elsewhere, so that a token may come out otherwise; the first ones rarely do
        assert torch.equal(drawn[:, 0], plain[:, 0])


@pytest.fixture(scope="module")
def flow(golden):
    return janus_core.load(golden("flow-a").folder, device="cpu", dtype=torch.float32)


@recordable
@pytest.mark.parametrize("negative_prompt", ["", "a blurry photo of a cat"])
@pytest.mark.parametrize("num_images,interval,recordings", [(1, (0.0, 1.0), 1), (2, (0.3, 0.7), 2)])
def test_a_recorded_velocity_gives_the_same_latents(
    flow, monkeypatch, caplog, negative_prompt, num_images, interval, recordings
):
    settings = dict(num_images=num_images, steps=12, negative_prompt=negative_prompt, guidance_interval=interval)
    plain = flow.generate_latents("a cat", **settings)
    made = []

    def counting(function):
        made.append(record(function))
        return made[-1]

    monkeypatch.setattr("janus_core.pipeline.recorder", lambda device: counting)
    assert torch.allclose(flow.generate_latents("a cat", **settings), plain, atol=1e-5)
    assert len(made) == recordings and not caplog.records
    flow.generate_latents("a cat", cuda_graphs=False, **settings)
    assert len(made) == recordings


def test_a_velocity_that_cannot_be_recorded_goes_on(flow, monkeypatch, caplog):
    plain = flow.generate_latents("a cat", steps=5)
    monkeypatch.setattr("janus_core.pipeline.recorder", lambda device: fails)
    assert torch.equal(flow.generate_latents("a cat", steps=5), plain)
    (message,) = (r.getMessage() for r in caplog.records)
    assert "not permitted when" in message


def test_nothing_of_a_velocity_is_on_the_host(golden):
    with torch.inference_mode():
        checkpoint = read_checkpoint(golden("flow-a").folder)
        model = build_model(checkpoint, torch.nn, dtype=torch.float32).to("meta")
        side = model.params.uvit.stride * 4
        z = torch.empty(1, model.params.uvit.latent_channels, side, side, device="meta")
        embeds = torch.empty(2, 9, model.params.llama.hidden_size, device="meta")
        visible = torch.empty(2, 9, dtype=torch.bool, device="meta")
        prompt = model.encode_prompt(embeds, visible, model.image_tokens(side, side))
        with Devices() as devices:
            v = model.velocity(z, torch.empty(1, device="meta"), prompt)
    assert v.shape == (2, *z.shape[1:]) and devices.on_cpu == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype,bar", [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_cuda_graph_gives_the_same_latents(golden, dtype, bar, caplog):
    pipe = janus_core.load(golden("flow-a").folder, device="cuda", dtype=dtype)
    settings = dict(num_images=2, steps=12, guidance_interval=(0.2, 0.9))
    plain = pipe.generate_latents("a cat", cuda_graphs=False, **settings)
    assert (pipe.generate_latents("a cat", **settings) - plain).abs().max() < bar and not caplog.records


@pytest.fixture
def fake_cuda(monkeypatch):
    """What recording asks of torch.cuda, without a GPU: a graph that remembers its function while it is recorded."""
    state = SimpleNamespace(streams=0, waits=0, function=None, breaks_off=False)

    class Graph:
        def replay(self):
            self.function()

    class Stream:
        def __init__(self, device):
            state.streams += 1

    @contextmanager
    def graph(made, pool, stream, capture_error_mode):
        made.function = state.function
        yield
        if state.breaks_off:
            raise RuntimeError("operation failed due to a previous error during capture")

    for name, value in dict(
        CUDAGraph=Graph,
        Stream=Stream,
        graph=graph,
        graph_pool_handle=lambda: (0, 1),
        device=lambda device: nullcontext(),
        stream=lambda stream: nullcontext(),
        current_stream=lambda device: None,
        synchronize=lambda device: setattr(state, "waits", state.waits + 1),
    ).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(recording, "_streams", defaultdict(list))
    monkeypatch.setattr(recording, "_failed", set())
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device, **kwargs: ones(*size))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return state


def test_a_stream_records_one_living_graph(fake_cuda):
    device, calls = torch.device("cuda", 0), []
    fake_cuda.function = lambda: calls.append(1)
    first, second = (recording.cuda_graph(fake_cuda.function, device) for _ in range(2))
    first(), second()
    assert fake_cuda.streams == 2 and fake_cuda.waits == 0 and len(calls) == 4  # two of them while recording
    del first
    assert fake_cuda.waits == 1
    recording.cuda_graph(fake_cuda.function, device)
    assert fake_cuda.streams == 2


def test_a_recording_that_broke_off_is_not_tried_again(fake_cuda):
    device = torch.device("cuda", 0)
    record = recording.recorder(device)
    with pytest.raises(RuntimeError, match="not permitted"):
        record(lambda: fails(None))
    assert recording.recorder(device) is not None  # the work failed, the recording ended well
    fake_cuda.breaks_off = True
    with pytest.raises(RuntimeError, match="previous error"):
        record(lambda: fails(None))
    assert recording.recorder(device) is None
    with pytest.raises(RuntimeError, match="earlier"):
        record(print)
    assert recording.recorder(torch.device("cuda", 1)) is not None
