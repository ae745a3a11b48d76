"""The counter-based noise, token selection, and what the samplers promise about batches and settings."""

import math

import pytest
import torch

import janus_core
from janus_core.errors import ImageError, PromptError, SamplingError
from janus_core.networks.cache import KVCache
from janus_core.sampling import jacobi
from janus_core.sampling.decode_loop import decode_loop
from janus_core.sampling.flow import flow_times, guided_velocity, is_guided
from janus_core.sampling.noise import gumbel, mix, stream_keys
from janus_core.sampling.select import select_token
from janus_core.sampling.settings import TokenSamplerSettings
from janus_core.sampling.tokens import sample_image_tokens


@pytest.fixture(scope="module")
def ar(golden):
    return janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def flow(golden):
    return janus_core.load(golden("flow-a").folder, device="cpu", dtype=torch.float32)


def splitmix64(x: int) -> int:
    """The reference finaliser on Python integers."""
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


def frequencies(logits, samples=4000, **settings):
    keys = stream_keys(0, range(samples), "cpu")
    noise = gumbel(keys, 0, logits.shape[-1])
    tokens = select_token(logits.expand(samples, -1), TokenSamplerSettings(**settings), noise)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / samples


def test_tokens_follow_their_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(-1)[0]
        assert (frequencies(logits, temperature=temperature) - expected).abs().max() < 0.025


def test_top_k_and_top_p_leave_the_most_likely():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert frequencies(logits, top_k=2).tolist()[2:] == [0, 0]
    nucleus = frequencies(logits, top_p=0.6)
    assert nucleus[2:].sum() == 0 and abs(nucleus[0] - 4 / 7) < 0.03
    assert frequencies(logits, top_p=0.0).tolist() == [1, 0, 0, 0]
    assert frequencies(logits, temperature=0).tolist() == [1, 0, 0, 0]
    both = frequencies(logits, top_k=3, top_p=0.75)
    assert both[2] == 0 and both[3] == 0


@pytest.mark.parametrize(
    "setting", [{"temperature": -1}, {"temperature": 6}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 1.5}]
)
def test_token_selection_out_of_range(setting):
    with pytest.raises(SamplingError, match=next(iter(setting))):
        TokenSamplerSettings(**setting)


def test_an_image_does_not_depend_on_its_batch(ar):
    batch = ar.generate_tokens("a cat", seed=40, num_images=5)
    for k in range(5):
        assert torch.equal(ar.generate_tokens("a cat", seed=40 + k), batch[k : k + 1])
    assert len({tuple(row) for row in batch.tolist()}) == 5


def test_prompts_of_different_lengths_in_one_batch_are_exact(ar):
    """A longer negative prompt shares the cache, aligned at the end, and each row keeps its own positions."""
    negative = "a very long and blurry photo of nothing at all"
    sampled = ar.generate_tokens("a cat", negative_prompt=negative, guidance=3, temperature=0)[:, :8]
    with torch.inference_mode():
        rows = ar.encode_prompt("a cat", negative)
        steps = sample_image_tokens(ar.model, *rows, 8, TokenSamplerSettings(guidance=3, temperature=0))
        guided = torch.cat([step.logits for step in steps])
        image = ar.model.embed_image_tokens(sampled[:, :7], torch.float32)
        cond, uncond = (ar.model.llama(torch.cat((row, image), dim=1))[:, row.shape[1] - 1 :] for row in rows)
        cond, uncond = ar.model.image_logits(cond)[0], ar.model.image_logits(uncond)[0]
    assert torch.allclose(guided, uncond + 3 * (cond - uncond), atol=1e-4)


def test_given_tokens_are_taken_not_sampled(ar):
    whole = ar.generate_tokens("a cat", seed=1)
    is_given = torch.zeros(1, 36, dtype=torch.bool)
    is_given[:, :20] = True
    settings, given = TokenSamplerSettings(seed=1), (whole, is_given)
    with torch.inference_mode():
        *_, last = sample_image_tokens(ar.model, *ar.encode_prompt("a dog"), 36, settings, given_tokens=given)
        *_, same = sample_image_tokens(ar.model, *ar.encode_prompt("a cat"), 36, settings, given_tokens=given)
    assert torch.equal(last.tokens[:, :20], whole[:, :20]) and not torch.equal(last.tokens, whole)
    assert torch.equal(same.tokens, whole)


def test_sizes(ar, flow):
    assert ar.generate_latents("a", size=(64, 32)).shape == (1, 8, 2, 4)
    assert flow.generate_latents("a", size=(64, 32), steps=2).shape == (1, 4, 4, 8)
    for pipe in (ar, flow):
        with pytest.raises(janus_core.ImageError, match="multiple of 16"):
            pipe.generate_latents("a", size=(65, 32))


def test_flow_batches_share_their_first_image(flow):
    two = flow.generate_latents("a cat", num_images=2, seed=3, steps=4)
    assert torch.allclose(two[:1], flow.generate_latents("a cat", seed=3, steps=4), atol=1e-5)


def test_both_branches_of_guidance_encode_the_latents_once(flow):
    embeds, visible = torch.randn(2, 5, 96), torch.tensor([[True] * 5, [True, False, False, False, True]])
    z, t = torch.randn(3, 4, 8, 8), torch.tensor([100.0, 200.0, 300.0])
    with torch.inference_mode():
        prompt = flow.model.encode_prompt(embeds, visible, 16).repeat(3)
        once, twice = flow.model.velocity(z, t, prompt), flow.model.velocity(z.repeat(2, 1, 1, 1), t.repeat(2), prompt)
    assert once.shape == (6, 4, 8, 8)
    torch.testing.assert_close(once, twice)


def test_flow_guidance_one_is_the_conditional_velocity(flow):
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


def test_image_to_image_starts_from_the_blend_of_latents_and_noise(flow):
    """At time t the path of rectified flow is t x + (1 - t) noise; with denoise 0.25 the run starts at t = 0.75."""
    x, noise = torch.randn(1, 4, 12, 12), torch.randn(1, 4, 12, 12)
    with torch.inference_mode():
        rows = flow.encode_prompt("a dog")
        z = 0.75 * x + 0.25 * noise
        expected = z + 0.25 * guided_velocity(flow.model, *rows, z, 2.0)(z, 0.75)
    result = flow.generate_latents("a dog", latents=x, noise=noise, denoise=0.25, steps=1)
    assert torch.allclose(result, expected, atol=1e-5)


def test_image_to_image_changes_more_with_a_higher_denoise(flow):
    start = flow.generate_latents("a cat", seed=1)
    near, far = (flow.generate_latents("a dog", seed=2, latents=start, denoise=d, steps=6) for d in (0.1, 0.9))
    assert (near - start).square().mean() < (far - start).square().mean()
    with pytest.raises(SamplingError, match="latents"):
        flow.generate_latents("a", denoise=0.5)
    with pytest.raises(SamplingError, match="below 1"):
        flow.generate_latents("a", latents=start)


def test_a_size_that_is_not_that_of_the_latents_is_refused(flow):
    latents = torch.randn(1, 4, 12, 12)
    for given in ({"latents": latents, "denoise": 0.5}, {"noise": latents}):
        assert flow.generate_latents("a", size=(96, 96), steps=1, **given).shape == latents.shape
        with pytest.raises(ImageError, match="not of the size"):
            flow.generate_latents("a", size=(64, 96), steps=1, **given)


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
def test_any_text_generates(ar, flow, prompt):
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
    """Guidance acts inside the interval alone, whatever was sampled before."""

    def logits(interval, guidance=5):
        settings = TokenSamplerSettings(guidance=guidance, guidance_interval=interval, temperature=0)
        steps = sample_image_tokens(ar.model, *ar.encode_prompt("a cat"), 36, settings, given_tokens=given)
        return torch.cat([step.logits for step in steps])

    sampled = ar.generate_tokens("a cat", temperature=0)
    given = (sampled, torch.ones_like(sampled, dtype=torch.bool))
    with torch.inference_mode():
        whole, none, middle = logits((0.0, 1.0)), logits((0.0, 0.0)), logits((0.25, 0.75))
        alone = logits((0.0, 1.0), guidance=1)
    assert torch.allclose(none, alone, atol=1e-5)
    assert torch.allclose(middle[9:27], whole[9:27], atol=1e-4)
    assert torch.allclose(middle[:9], alone[:9], atol=1e-4) and torch.allclose(middle[27:], alone[27:], atol=1e-4)
    assert not torch.allclose(whole, alone, atol=1e-2)


def test_guidance_interval_of_the_flow(flow):
    z = torch.randn(2, 4, 12, 12)
    for negative in ("", "a much longer prompt of another length"):
        rows = flow.encode_prompt("a cat", negative)
        with torch.inference_mode():
            velocity = guided_velocity(flow.model, *rows, z, 3.0, (0.25, 0.75))
            whole = guided_velocity(flow.model, *rows, z, 3.0)
            alone = guided_velocity(flow.model, *rows, z, 1.0)
            for t, expected in ((0.0, alone), (0.25, whole), (0.5, whole), (0.75, alone), (0.9, alone)):
                assert torch.allclose(velocity(z, t), expected(z, t), atol=1e-5)


@pytest.mark.parametrize("steps", [10, 20, 30, 50])
def test_an_interval_that_begins_at_a_step_has_it(steps):
    """And one that ends there has not, whatever the error of a time that ComfyUI keeps as a float32 sigma."""
    for k in range(1, steps):
        sigma = torch.tensor(1 - k / steps, dtype=torch.float32).item()
        for t in (flow_times(steps, 1)[k], 1 - sigma):
            assert is_guided(t, (k / steps, 1)) and not is_guided(t, (0, k / steps))


@pytest.mark.parametrize("interval", [(-0.1, 1), (0, 1.1), (0.6, 0.4)])
def test_guidance_intervals_out_of_range(ar, flow, interval):
    for pipe in (ar, flow):
        with pytest.raises(SamplingError, match="interval"):
            pipe.generate_latents("a", guidance_interval=interval)


@pytest.mark.parametrize("window", [2, 5, 16, 64])
@pytest.mark.parametrize("temperature,num_images", [(1.0, 1), (0.0, 1), (0.3, 3)])
def test_speculation_samples_the_same_tokens(ar, window, temperature, num_images):
    """Jacobi iteration gives the tokens of one-by-one decoding, with a negative prompt of another length as well."""
    settings = dict(seed=3, temperature=temperature, num_images=num_images, negative_prompt="a blurry photo of a cat")
    plain = ar.generate_tokens("a cat", **settings)
    assert torch.equal(ar.generate_tokens("a cat", window=window, **settings), plain)
    part = dict(guidance_interval=(0.2, 0.7), **settings)
    assert torch.equal(ar.generate_tokens("a cat", window=window, **part), ar.generate_tokens("a cat", **part))


def test_right_guesses_save_passes(ar):
    """Where every token is given, all guesses but the first of a window are right after one pass each."""
    zeros = torch.zeros(1, 36, dtype=torch.long)
    given, rows = (zeros, torch.ones_like(zeros, dtype=torch.bool)), ar.encode_prompt("a cat")
    with torch.inference_mode():
        *_, last = sample_image_tokens(
            ar.model, *rows, 36, TokenSamplerSettings(), given_tokens=given, decode=decode_loop(window=12, width=6)
        )
    assert torch.equal(last.tokens, zeros) and last.passes < 10


def test_the_first_guess_is_the_token_above():
    """Of an image of four columns: leftovers of the last pass come first, then the row above, guessed or known."""
    tokens = torch.tensor([[10, 11, 12, 13, 14, 15, 0, 0, 0, 0, 0, 0]])
    assert jacobi.next_guess(tokens, 6, tokens[:, :0], 5, width=4).tolist() == [[12, 13, 14, 15, 12]]
    assert jacobi.next_guess(tokens, 6, torch.tensor([[77]]), 4, width=4).tolist() == [[77, 13, 14, 15]]
    assert jacobi.next_guess(tokens, 2, tokens[:, :0], 3, width=4).tolist() == [[11, 11, 10]]


def test_a_cpu_caches_keys_and_values_in_float32(ar, golden):
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
