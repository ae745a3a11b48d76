"""CUDA graphs: captured steps give the plain steps' results, and the plain steps run wherever capturing fails."""

import logging
from collections import Counter

import pytest
import torch
from cpu_graph import capture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import janus_core
from janus_core.checkpoint import build_model, read_checkpoint
from janus_core.sampling import attempts, cuda_graphs, graph_decode, tokens
from janus_core.sampling.captured_step import CapturedStep
from janus_core.sampling.decode_loop import decode_loop
from janus_core.sampling.settings import TokenSamplerSettings

needs_replay = pytest.mark.skipif(torch.__version__ < "2.6", reason="this torch cannot replay its operations on a CPU")


@pytest.fixture(autouse=True)
def no_failures_yet(monkeypatch):
    monkeypatch.setattr(attempts, "_failures", Counter())


@pytest.fixture(scope="module")
def ar(golden):
    return janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)


def sample(ar, num_images=1, capture=None, **settings):
    """The last step and all logits, with one token given."""
    given = (torch.full((num_images, 36), 7), torch.arange(36).expand(num_images, -1) == 5)
    with torch.inference_mode():
        steps = tokens.sample_image_tokens(
            ar.model,
            *ar.encode_prompt("a cat", "a blurry photo of a cat"),
            36,
            TokenSamplerSettings(seed=3, **settings),
            image_indices=range(num_images),
            given_tokens=given,
            decode=decode_loop(capture=capture),
        )
        pairs = [(step, step.logits.clone()) for step in steps]
    return pairs[-1][0], torch.stack([logits for _, logits in pairs])


def counting(captured: list, capture=capture):
    """A capture that appends every replay to a list."""

    def count(step):
        captured.append(capture(step))
        return captured[-1]

    return count


@needs_replay
@pytest.mark.parametrize("selection", [{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 50, "top_p": 0.9}])
@pytest.mark.parametrize("num_images,interval", [(1, (0.0, 1.0)), (3, (0.0, 1.0)), (2, (0.2, 0.7)), (1, (0.0, 0.0))])
def test_a_captured_step_samples_the_same_tokens(ar, num_images, interval, selection, caplog):
    captured, settings = [], dict(num_images=num_images, guidance_interval=interval, **selection)
    (plain, logits), (replayed, same) = sample(ar, **settings), sample(ar, capture=counting(captured), **settings)
    assert torch.equal(replayed.tokens, plain.tokens) and (replayed.tokens[:, 5] == 7).all()
    assert torch.allclose(logits, same, atol=1e-4)
    assert len(captured) == (2 if interval == (0.2, 0.7) else 1)  # once more without the unconditional rows
    assert not caplog.records, "every capture was used"


def fails(step):
    raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


def replays_zeros(step):
    def replay():
        step()
        step.hidden.zero_()

    return replay


def replays_one_position(step):
    """As if the position had been a number of the captured function."""
    first = step.position.clone()

    def replay():
        step.position.copy_(first)
        step()

    return replay


def overflows(step):
    def replay():
        step()
        step.hidden.fill_(torch.nan)
        step.state.finite.fill_(False)

    return replay


def runs_out_of_memory(step):
    raise torch.cuda.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(
    "capture,problem,attempts",
    [
        (fails, "not permitted when", 2),
        (replays_zeros, "differs", 2),
        (replays_one_position, "differs", 2),
        (overflows, "differs", 2),
        (runs_out_of_memory, "out of memory", 3),
    ],
)
def test_a_step_that_cannot_be_captured_is_run_plainly(ar, capture, problem, attempts, caplog):
    """It is tried twice in a process, or whenever memory ran out."""
    plain, logits = sample(ar, 2)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            sampled, same = sample(ar, 2, capture=capture)
            assert torch.equal(sampled.tokens, plain.tokens) and torch.equal(logits, same)
    assert len(caplog.records) == attempts
    for message in (r.getMessage() for r in caplog.records):
        assert problem in message and "more of it" not in message
    captured = []
    sample(ar, 1, capture=counting(captured, capture=lambda step: step))
    assert captured, "with another number of rows it is tried"


def test_an_interruption_inside_a_capture_ends_the_run(ar, caplog):
    class Cancel(BaseException):
        pass

    def interrupted(step):
        raise Cancel

    with pytest.raises(Cancel):
        sample(ar, capture=interrupted)
    assert not caplog.records


def test_output_that_is_not_finite_is_refused(ar, golden):
    broken = janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)
    broken.model.llama.norm.weight.fill_(float("nan"))
    with pytest.raises(janus_core.SamplingError, match="finite"):
        sample(broken, capture=capture)


def test_capturing_is_opt_in(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.delenv("JANUS_CUDA_GRAPHS", raising=False)
    assert cuda_graphs.capture_for(gpu) is None and cuda_graphs.capture_for(gpu, True) is not None
    monkeypatch.setenv("JANUS_CUDA_GRAPHS", "1")
    assert cuda_graphs.capture_for(gpu) is not None and cuda_graphs.capture_for(gpu, False) is None
    assert cuda_graphs.capture_for(cpu, True) is None


@needs_replay
def test_the_triton_decoder_is_opt_in(ar, monkeypatch):
    class Decoder(graph_decode.PlainDecoder):
        pass

    used = []
    monkeypatch.setattr(graph_decode.triton_decoder, "usable", lambda llama, x: True)
    monkeypatch.setattr(
        graph_decode.triton_decoder, "TritonDecoder", lambda *args: used.append(1) or Decoder(*args), raising=True
    )
    graph_decode.triton_decoder.TritonDecoder.__name__ = "TritonDecoder"
    monkeypatch.delenv("JANUS_TRITON_DECODER", raising=False)
    plain, _ = sample(ar, capture=capture)
    assert not used
    monkeypatch.setenv("JANUS_TRITON_DECODER", "1")
    assert torch.equal(sample(ar, capture=capture)[0].tokens, plain.tokens) and used


class Devices(TorchDispatchMode):
    """Collects operations with a CPU tensor among their arguments or results."""

    def __init__(self):
        super().__init__()
        self.on_cpu = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in tree_leaves((args, kwargs, out))):
            self.on_cpu.append(str(func))
        return out


def test_a_decode_step_touches_no_host_memory(golden):
    """A copy from the host cannot be captured; the meta device stands in for a GPU."""
    with torch.inference_mode():
        model = build_model(read_checkpoint(golden("ar-a").folder), torch.nn, dtype=torch.float32).to("meta")
        width = model.params.llama.hidden_size
        rows = [(tokens.PromptRow(torch.empty(n, width, device="meta")), 1) for n in (9, 12)]
        cache, starts, hidden = tokens.prefill(model, rows, 35)
        state = tokens.DecodeState(
            model=model,
            settings=TokenSamplerSettings(temperature=0.8, top_k=50, top_p=0.9),
            guided=(3, 30),
            keys=torch.empty(1, dtype=torch.long, device="meta"),
            given=None,
            cache=cache,
            starts=starts.to("meta"),
            first_slots=starts.to("meta"),
            hidden=hidden,
            tokens=torch.empty(1, 36, dtype=torch.long, device="meta"),
            finite=torch.empty((), device="meta").bool(),
        )
        step = graph_decode.DecodeStep(
            state, graph_decode.PlainDecoder(model.llama, cache, state.starts, state.first_slots), 1
        )
        with Devices() as devices:
            step()
            step.refill_noise(32)
    assert step.logits.shape == (1, model.params.vq.codebook_size) and devices.on_cpu == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_samples_the_same_tokens(golden, dtype, caplog):
    pipe = janus_core.load(golden("ar-a").folder, device="cuda", dtype=dtype)
    settings = dict(num_images=2, seed=3, guidance_interval=(0.1, 0.8), top_k=50, top_p=0.9)
    plain = pipe.generate_tokens("a cat", cuda_graphs=False, **settings)
    replayed = pipe.generate_tokens("a cat", cuda_graphs=True, triton=True, **settings)
    assert not caplog.records
    if dtype == torch.float32:
        assert torch.equal(replayed, plain)
    else:  # the kernels round differently, so that a later token may differ
        assert torch.equal(replayed[:, 0], plain[:, 0])


@pytest.fixture(scope="module")
def flow(golden):
    return janus_core.load(golden("flow-a").folder, device="cpu", dtype=torch.float32)


@needs_replay
@pytest.mark.parametrize("negative_prompt", ["", "a blurry photo of a cat"])
@pytest.mark.parametrize("num_images,interval,captures", [(1, (0.0, 1.0), 1), (2, (0.3, 0.7), 2)])
def test_a_captured_velocity_gives_the_same_latents(
    flow, monkeypatch, caplog, negative_prompt, num_images, interval, captures
):
    settings = dict(num_images=num_images, steps=12, negative_prompt=negative_prompt, guidance_interval=interval)
    plain = flow.generate_latents("a cat", **settings)
    captured = []
    monkeypatch.setattr("janus_core.pipeline.capture_for", lambda device, enabled: counting(captured))
    assert torch.allclose(flow.generate_latents("a cat", **settings), plain, atol=1e-5)
    assert len(captured) == captures and not caplog.records


def test_a_replay_must_give_the_results_of_two_calls(caplog):
    """A capture that bakes its inputs in gives the second call's result for both."""

    def constant(step):
        step()
        return lambda: None

    double = CapturedStep("A step", lambda x: 2 * x, constant)
    for k in range(4):
        assert torch.equal(double(torch.full((2, 3), float(k))), torch.full((2, 3), 2.0 * k))
    (message,) = (r.getMessage() for r in caplog.records)
    assert "A step" in message and "differs" in message


def test_a_velocity_that_cannot_be_captured_runs_plainly(flow, monkeypatch, caplog):
    plain = flow.generate_latents("a cat", steps=5)
    monkeypatch.setattr("janus_core.pipeline.capture_for", lambda device, enabled: fails)
    assert torch.equal(flow.generate_latents("a cat", steps=5), plain)
    (message,) = (r.getMessage() for r in caplog.records)
    assert "not permitted when" in message


def test_a_velocity_touches_no_host_memory(golden):
    with torch.inference_mode():
        checkpoint = read_checkpoint(golden("flow-a").folder)
        model = build_model(checkpoint, torch.nn, dtype=torch.float32).to("meta")
        size = model.params.uvit.stride * 4
        z = torch.empty(1, model.params.uvit.latent_channels, size, size, device="meta")
        embeds = torch.empty(2, 9, model.params.llama.hidden_size, device="meta")
        visible = torch.empty(2, 9, dtype=torch.bool, device="meta")
        prompt = model.encode_prompt(embeds, visible, model.image_tokens(size, size))
        with Devices() as devices:
            v = model.velocity(z, torch.empty(1, device="meta"), prompt)
    assert v.shape == (2, *z.shape[1:]) and devices.on_cpu == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype,bar", [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_cuda_graph_gives_the_same_latents(golden, dtype, bar, caplog):
    pipe = janus_core.load(golden("flow-a").folder, device="cuda", dtype=dtype)
    settings = dict(num_images=2, steps=12, guidance_interval=(0.2, 0.9))
    plain = pipe.generate_latents("a cat", cuda_graphs=False, **settings)
    assert (
        pipe.generate_latents("a cat", cuda_graphs=True, **settings) - plain
    ).abs().max() < bar and not caplog.records
