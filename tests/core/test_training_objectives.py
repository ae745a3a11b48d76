"""Each objective against a small case computed by hand, and where its gradient goes."""

import math

import pytest
import torch

from janus_core.training import objectives


def test_text_loss_is_the_mean_negative_log_likelihood():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert objectives.text_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2
    )


def test_image_token_loss_is_over_every_token_of_every_image():
    logits = torch.zeros(2, 3, 4)
    logits[1, 2, 1] = math.log(5)
    tokens = torch.tensor([[0, 1, 2], [3, 0, 1]])
    assert objectives.image_token_loss(logits, tokens).item() == pytest.approx((5 * math.log(4) + math.log(8 / 5)) / 6)


def test_flow_path_runs_from_noise_to_data():
    x, z_0 = torch.full((3, 1, 1, 1), 4.0), torch.full((3, 1, 1, 1), -2.0)
    z_t = objectives.flow_path(x, z_0, torch.tensor([0.0, 0.25, 1.0]))
    assert z_t.flatten().tolist() == [-2.0, -0.5, 4.0]


def test_flow_loss_is_zero_for_the_straight_velocity_and_quadratic_off_it():
    x, z_0 = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    assert objectives.flow_loss(x - z_0, x, z_0).item() == 0
    assert objectives.flow_loss(x - z_0 + 3, x, z_0).item() == pytest.approx(9, abs=1e-4)


def test_times_are_logit_normal():
    torch.manual_seed(0)
    n = torch.logit(objectives.logit_normal_times(20000).double())
    assert n.mean().abs() < 0.03 and (n.std() - 1).abs() < 0.03


def test_repa_loss_is_minus_the_mean_cosine_without_gradient_to_the_encoder():
    features = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], requires_grad=True)
    projected = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]], requires_grad=True)
    loss = objectives.repa_loss(features, projected)
    assert loss.item() == pytest.approx(-(1 + math.sqrt(0.5)) / 2)
    loss.backward()
    assert features.grad is None and projected.grad is not None


def test_label_smoothing_is_per_row():
    logits = torch.zeros(2, 1, 4)
    logits[:, 0, 0] = math.log(5)  # probabilities 5/8, 1/8, 1/8, 1/8
    smoothed = (0.5 * -math.log(5 / 8) + 0.5 * -(math.log(5 / 8) + 3 * math.log(1 / 8)) / 4) / 2
    loss = objectives.image_token_loss(logits, torch.zeros(2, 1, dtype=torch.long), torch.tensor([0.0, 0.5]))
    assert loss.item() == pytest.approx(-math.log(5 / 8) / 2 + smoothed)
