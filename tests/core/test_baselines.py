"""The benchmark's baselines compute what ours computes."""

import pytest
import torch

pytest.importorskip("transformers")
from benchmarks import baselines  # noqa: E402
from janus_core.checkpoint import build_model  # noqa: E402
from janus_core.sampling import flow  # noqa: E402


@torch.inference_mode()
def test_the_plain_flow_loop_ends_at_our_latents():
    baseline = baselines.PlainFlow("demo", torch.device("cpu"), torch.float32)
    ours = build_model(baseline.checkpoint)
    torch.manual_seed(0)
    embeds, z = torch.randn(2, 7, 192), torch.randn(1, 4, 16, 16)
    visible = torch.ones(2, 7, dtype=torch.bool)
    visible[1, 1:] = False
    theirs = baseline.draw(embeds, visible, z, 3)
    sides = (flow.Prompt(embeds[k : k + 1], visible[k : k + 1]) for k in range(2))
    velocity = flow.guided_velocity(ours, *sides, z, 2.0)
    *_, last = flow.sample_steps(velocity, z, flow.flow_times(3))
    assert not torch.allclose(theirs, z, atol=0.1)
    torch.testing.assert_close(last.z, theirs, atol=1e-4, rtol=0)


def test_a_reference_that_is_no_checkout_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("JANUS_REFERENCE", str(tmp_path))
    with pytest.raises(SystemExit, match="no checkout of deepseek-ai/Janus"):
        baselines.reference()
