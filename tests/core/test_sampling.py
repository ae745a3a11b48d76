"""The counter-based noise, choosing tokens, and what the samplers promise about batches and settings."""

import math

import pytest
import torch
from janus_core.sampling.choice import Choice

import janus_core
from janus_core.errors import PromptError, SamplingError
from janus_core.networks.llama import KVCache
from janus_core.sampling import tokens
from janus_core.sampling.flow import flow_times, guided_velocity
from janus_core.sampling.noise import gumbel, mix, stream_keys


@pytest.fixture(scope="module")
def ar(golden):
    return janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def flow(golden):
    return janus_core.load(golden("flow-a").folder, device="cpu", dtype=torch.float32)


def splitmix64(x: int) -> int:
    """The published finaliser on Python integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return x ^ (x >> 31)


def test_mix_is_splitmix64():
    values = [0, 1, 2**63 - 1, -1, -(2**63), 1234567890123456789]
    mixed = mix(torch.tensor(values)).tolist()
    assert [v % 2**64 for v in mixed] == [splitmix64(v % 2**64) for v in values]


def test_gumbel_noise_has_the_gumbel_distribution():
    noise = torch.cat([gumbel(stream_keys(0, range(64), "cpu"), position, 1024) for position in range(8)]).flatten()
    assert noise.isfinite().all()
    assert abs(noise.mean().item() - 0.57722) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.02
    x = torch.linspace(-2, 8, 41)
    empirical = (noise[:, None] <= x).float().mean(0)
    assert (empirical - torch.exp(-torch.exp(-x))).abs().max() < 0.005


def test_noise_depends_on_its_counters_alone():
    batch = gumbel(stream_keys(5, range(4), "cpu"), 3, 100)
    assert torch.equal(gumbel(stream_keys(7, [0], "cpu"), 3, 100), batch[2:3])
    assert torch.equal(gumbel(stream_keys(5, [2], "cpu"), 3, 50), batch[2:3, :50])
    assert not torch.equal(gumbel(stream_keys(7, [0], "cpu"), 4, 100), batch[2:3])
    assert torch.equal(stream_keys(2**64 - 1, [0, 1], "cpu")[1:], stream_keys(0, [0], "cpu"))


def frequencies(choice, logits, draws=4000):
    keys = stream_keys(0, range(draws), "cpu")
    tokens = choice(logits.expand(draws, -1), gumbel(keys, 0, logits.shape[-1]))
    return torch.bincount(tokens, minlength=logits.shape[-1]) / draws


def test_tokens_follow_their_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(-1)[0]
        assert (frequencies(Choice(temperature), logits) - expected).abs().max() < 0.025


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert frequencies(Choice(top_k=2), logits).tolist()[2:] == [0, 0]
    kept = frequencies(Choice(top_p=0.6), logits)
    assert kept[2:].sum() == 0 and abs(kept[0] - 4 / 7) < 0.03
    assert frequencies(Choice(top_p=0.0), logits).tolist() == [1, 0, 0, 0]
    assert frequencies(Choice(temperature=0), logits).tolist() == [1, 0, 0, 0]
    both = frequencies(Choice(top_k=3, top_p=0.75), logits)
    assert both[2] == 0 and both[3] == 0


@pytest.mark.parametrize(
    "setting", [{"temperature": -1}, {"temperature": 6}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 1.5}]
)
def test_choices_out_of_range(setting):
    with pytest.raises(SamplingError, match=next(iter(setting))):
        Choice(**setting)


def test_a_picture_does_not_depend_on_its_batch(ar):
    batch = ar.generate_tokens("a cat", seed=40, num_images=5)
    for k in range(5):
        assert torch.equal(ar.generate_tokens("a cat", seed=40 + k), batch[k : k + 1])
    assert len({tuple(row) for row in batch.tolist()}) == 5


def test_prompts_of_different_lengths_in_one_batch_are_exact(ar):
    """A longer negative prompt shares the cache, aligned at the end, and each row keeps its own positions."""
    negative = "a very long and blurry photo of nothing at all"
    drawn = ar.generate_tokens("a cat", negative_prompt=negative, guidance=3, temperature=0)[:, :8]
    with torch.inference_mode():
        sides = ar.sides("a cat", negative)
        steps = tokens.sample_steps(ar.model, *sides, 8, cfg=3, choice=Choice(temperature=0))
        guided = torch.cat([step.logits for step in steps])
        pictures = ar.model.embed_image_tokens(drawn[:, :7], torch.float32)
        c, u = (ar.model.llama(torch.cat((side, pictures), dim=1))[:, side.shape[1] - 1 :] for side in sides)
        c, u = ar.model.image_logits(c)[0], ar.model.image_logits(u)[0]
    assert torch.allclose(guided, u + 3 * (c - u), atol=1e-4)


def test_tokens_to_keep(ar):
    whole = ar.generate_tokens("a cat", seed=1)
    keep = torch.zeros(1, 36, dtype=torch.bool)
    keep[:, :20] = True
    with torch.inference_mode():
        *_, last = tokens.sample_steps(ar.model, *ar.sides("a dog"), 36, seed=1, keep=(whole, keep))
        *_, same = tokens.sample_steps(ar.model, *ar.sides("a cat"), 36, seed=1, keep=(whole, keep))
    assert torch.equal(last.tokens[:, :20], whole[:, :20]) and not torch.equal(last.tokens, whole)
    assert torch.equal(same.tokens, whole)


def test_sizes(ar, flow):
    assert ar.generate_latents("a", size=(64, 32)).shape == (1, 8, 2, 4)
    assert flow.generate_latents("a", size=(64, 32), steps=2).shape == (1, 4, 4, 8)
    for pipe in (ar, flow):
        with pytest.raises(janus_core.ImageError, match="multiple of 16"):
            pipe.generate_latents("a", size=(65, 32))


def test_flow_batches_share_their_first_picture(flow):
    two = flow.generate_latents("a cat", num_images=2, seed=3, steps=4)
    assert torch.allclose(two[:1], flow.generate_latents("a cat", seed=3, steps=4), atol=1e-5)


def test_both_sides_of_the_guidance_read_the_latents_once(flow):
    embeds, visible = torch.randn(2, 5, 96), torch.tensor([[True] * 5, [True, False, False, False, True]])
    z, t = torch.randn(3, 4, 8, 8), torch.tensor([100.0, 200.0, 300.0])
    with torch.inference_mode():
        prompt = flow.model.encode_prompt(embeds, visible, 16).repeat(3)
        once, twice = flow.model.velocity(z, t, prompt), flow.model.velocity(z.repeat(2, 1, 1, 1), t.repeat(2), prompt)
    assert once.shape == (6, 4, 8, 8)
    torch.testing.assert_close(once, twice)


def test_flow_guidance_one_is_the_positive_velocity(flow):
    a = flow.generate_latents("a cat", guidance=1, steps=3)
    b = flow.generate_latents("a cat", guidance=1, steps=3, negative_prompt="something else")
    assert torch.equal(a, b)


def test_flow_negative_prompt_of_its_own_length(flow):
    a = flow.generate_latents("a cat", steps=3)
    b = flow.generate_latents("a cat", steps=3, negative_prompt="a long and blurry photo of nothing at all")
    same = flow.generate_latents("a cat", steps=3, negative_prompt="a cat")
    assert not torch.allclose(a, b, atol=1e-2)
    assert torch.allclose(same, flow.generate_latents("a cat", steps=3, guidance=1), atol=1e-4)


def test_flow_times():
    assert flow_times(4) == [0, 0.25, 0.5, 0.75, 1]
    assert flow_times(3, 0.5) == [0.5, 4 / 6, 5 / 6, 1]
    for steps, denoise in ((0, 1), (10001, 1), (5, 0), (5, 1.5)):
        with pytest.raises(SamplingError):
            flow_times(steps, denoise)


def test_flow_image_to_image_starts_from_the_latents(flow):
    start = flow.generate_latents("a cat", seed=1)
    near, far = (flow.generate_latents("a dog", seed=2, latents=start, denoise=d, steps=6) for d in (0.1, 0.9))
    assert (near - start).square().mean() < (far - start).square().mean()
    with pytest.raises(SamplingError, match="latents"):
        flow.generate_latents("a", denoise=0.5)


@pytest.mark.parametrize(
    "setting", [{"guidance": -1}, {"guidance": 101}, {"seed": -1}, {"seed": 2**64}, {"num_images": 0}]
)
def test_settings_out_of_range(ar, flow, setting):
    for pipe in (ar, flow):
        with pytest.raises(SamplingError):
            pipe.generate_latents("a", **setting)


def test_a_prompt_longer_than_the_context(ar, flow):
    for pipe in (ar, flow):
        with pytest.raises(PromptError, match="too long"):
            pipe.generate_latents("word " * 5000)


@pytest.mark.parametrize("prompt", ["", " \n ", "é" * 50, "🎨 日本", "\x00", "<image_placeholder>"])
def test_any_text_draws(ar, flow, prompt):
    assert ar.generate_tokens(prompt, temperature=0).shape == (1, 36)
    assert flow.generate_latents(prompt, steps=1).isfinite().all()


def test_output_that_is_not_finite(golden):
    for name, weight in (("ar-a", "gen_head.vision_head"), ("flow-a", "vision_gen_enc_aligner")):
        pipe = janus_core.load(golden(name).folder, device="cpu", dtype=torch.float32)
        pipe.model.get_submodule(weight).weight.data = torch.full_like(
            pipe.model.get_submodule(weight).weight, math.nan
        )
        with pytest.raises(SamplingError, match="not finite"):
            pipe.generate_latents("a")


def test_a_callback_sees_every_step_and_can_cancel(ar, flow):
    seen = []
    ar.generate_tokens("a", callback=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 36) for k in range(1, 37)]
    for pipe in (ar, flow):
        with pytest.raises(janus_core.Cancelled):
            pipe.generate_latents("a", callback=lambda done, total: done < 3)


def test_guidance_interval_of_tokens(ar):
    """Inside the interval the tokens are guided, outside they are the prompt's own, whatever was drawn before."""

    def logits(interval):
        steps = tokens.sample_steps(
            ar.model, *ar.sides("a cat"), 36, cfg=5, cfg_interval=interval, choice=Choice(0), keep=keep
        )
        return torch.cat([step.logits for step in steps])

    drawn = ar.generate_tokens("a cat", temperature=0)
    keep = (drawn, torch.ones_like(drawn, dtype=torch.bool))
    with torch.inference_mode():
        whole, none, middle = logits((0.0, 1.0)), logits((0.0, 0.0)), logits((0.25, 0.75))
        alone = torch.cat(
            [
                s.logits
                for s in tokens.sample_steps(ar.model, *ar.sides("a cat"), 36, cfg=1, choice=Choice(0), keep=keep)
            ]
        )
    assert torch.allclose(none, alone, atol=1e-5)
    assert torch.allclose(middle[9:27], whole[9:27], atol=1e-4)
    assert torch.allclose(middle[:9], alone[:9], atol=1e-4) and torch.allclose(middle[27:], alone[27:], atol=1e-4)
    assert not torch.allclose(whole, alone, atol=1e-2)


def test_guidance_interval_of_the_flow(flow):
    z = torch.randn(2, 4, 12, 12)
    for negative in ("", "a much longer prompt of another length"):
        sides = flow.sides("a cat", negative)
        with torch.inference_mode():
            velocity = guided_velocity(flow.model, *sides, z, 3.0, (0.25, 0.75))
            whole = guided_velocity(flow.model, *sides, z, 3.0)
            alone = guided_velocity(flow.model, *sides, z, 1.0)
            for t, expected in ((0.0, alone), (0.25, whole), (0.5, whole), (0.75, alone), (0.9, alone)):
                assert torch.allclose(velocity(z, t), expected(z, t), atol=1e-5)


@pytest.mark.parametrize("interval", [(-0.1, 1), (0, 1.1), (0.6, 0.4)])
def test_guidance_intervals_out_of_range(ar, flow, interval):
    for pipe in (ar, flow):
        with pytest.raises(SamplingError, match="interval"):
            pipe.generate_latents("a", guidance_interval=interval)


@pytest.mark.parametrize("window", [2, 5, 16, 64])
@pytest.mark.parametrize("temperature,num_images", [(1.0, 1), (0.0, 1), (0.3, 3)])
def test_speculation_draws_the_same_tokens(ar, window, temperature, num_images):
    """Jacobi iteration returns exactly plain sampling's tokens, with a negative prompt of another length as well."""
    settings = dict(seed=3, temperature=temperature, num_images=num_images, negative_prompt="a blurry photo of a cat")
    plain = ar.generate_tokens("a cat", **settings)
    assert torch.equal(ar.generate_tokens("a cat", window=window, **settings), plain)
    part = dict(guidance_interval=(0.2, 0.7), **settings)
    assert torch.equal(ar.generate_tokens("a cat", window=window, **part), ar.generate_tokens("a cat", **part))


def test_right_guesses_save_passes(ar):
    """Where every token is given, all guesses but the first of a window come true after one pass each."""
    drawn = torch.zeros(1, 36, dtype=torch.long)
    keep = (drawn, torch.ones_like(drawn, dtype=torch.bool))
    with torch.inference_mode():
        *_, last = tokens.sample_steps(ar.model, *ar.sides("a cat"), 36, keep=keep, window=12, width=6)
    assert torch.equal(last.tokens, drawn) and last.passes < 10


def test_a_cpu_keeps_keys_and_values_in_float32(ar, golden):
    """Passes in bfloat16 then differ from one pass over the whole sequence by bfloat16's noise only."""
    llama, cache = ar.model.params.llama, KVCache(ar.model.params.llama, 1, 12, torch.bfloat16, "cpu")
    assert cache.keys.dtype == torch.float32
    assert KVCache.bytes(llama, 1, 12, torch.bfloat16, "cpu") == 2 * cache.keys.nbytes
    assert KVCache.bytes(llama, 1, 12, torch.bfloat16, "cuda") == cache.keys.nbytes
    model = janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.bfloat16).model
    torch.manual_seed(0)
    x = torch.randn(1, 12, llama.hidden_size).bfloat16()
    with torch.inference_mode():
        parts = [model.llama(part, cache=cache) for part in (x[:, :7], x[:, 7:8], x[:, 8:11], x[:, 11:])]
        whole = model.llama(x)
    assert whole.dtype == parts[1].dtype == torch.bfloat16
    assert (torch.cat(parts, dim=1) - whole).float().abs().max() < 0.05 * whole.float().abs().max()
