"""The kernel against a triple loop, finite differences and the laws of the logit."""

import math

import numpy as np
import pytest
import torch
from small_models import rebuilt

from mxlogit.model.differences import difference_panels
from mxlogit.model.likelihood import choice_probabilities, panel_derivatives, panel_log_prob

# Two float64 routes to one number of order ten.
EXACT = 1e-10


def loop_log_prob(data, beta):
    """Log P(y_n | beta_n) by loops over people, situations and alternatives."""
    result = []
    for n in range(data.n_decision_makers):
        total = 0.0
        for t in range(data.attributes.shape[1]):
            if not data.observed[n, t]:
                continue
            utilities = {
                j: sum(float(data.attributes[n, t, j, k] * beta[n, k]) for k in range(beta.shape[1]))
                for j in range(data.n_alternatives)
                if data.available[n, t, j]
            }
            top = max(utilities.values())
            denominator = math.log(sum(math.exp(v - top) for v in utilities.values())) + top
            total += utilities[int(data.chosen[n, t])] - denominator
        result.append(total)
    return torch.tensor(result, dtype=torch.float64)


@pytest.fixture
def beta(generator):
    return torch.randn(7, 5, 5, generator=generator, dtype=torch.float64)


def test_kernel_equals_triple_loop(data, panel, beta):
    expected = torch.stack([loop_log_prob(data, b) for b in beta])
    torch.testing.assert_close(panel_log_prob(beta, panel), expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("size", [30.0, 400.0])
def test_kernel_is_safe_for_extreme_utilities(data, panel, beta, size):
    expected = loop_log_prob(data, size * beta[0])
    got = panel_log_prob(size * beta[0], panel)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-12)


def test_any_leading_shape(panel, beta):
    shaped = panel_log_prob(beta[:6].reshape(2, 3, 5, 5), panel)
    torch.testing.assert_close(shaped.reshape(6, 5), panel_log_prob(beta[:6], panel), atol=0, rtol=0)


def test_gradient_and_information_by_finite_differences(panel, beta):
    point, h = beta[0], 1e-5
    at = panel_derivatives(torch.bmm(panel.values, point[..., None])[..., 0], panel)
    for k in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[k] = h
        up, down = (
            panel_derivatives(torch.bmm(panel.values, (point + s)[..., None])[..., 0], panel) for s in (step, -step)
        )
        torch.testing.assert_close(at.gradient[:, k], (up.log_prob - down.log_prob) / (2 * h), atol=1e-8, rtol=0)
        torch.testing.assert_close(at.information[:, k], (down.gradient - up.gradient) / (2 * h), atol=1e-8, rtol=0)


def test_autograd_through_the_kernel_equals_the_analytic_gradient(panel, beta):
    point = beta[0].clone().requires_grad_()
    panel_log_prob(point, panel).sum().backward()
    at = panel_derivatives(torch.bmm(panel.values, beta[0][..., None])[..., 0], panel)
    torch.testing.assert_close(point.grad, at.gradient, atol=EXACT, rtol=0)


def test_single_precision_is_close(data, panel, beta):
    single = difference_panels(data.to(device="cpu", dtype=torch.float32))
    torch.testing.assert_close(
        panel_log_prob(beta.float(), single).double(), panel_log_prob(beta, panel), atol=2e-5, rtol=0
    )


def test_relabelled_alternatives_change_nothing(data, panel, beta, generator):
    order = torch.randperm(data.n_alternatives, generator=generator)
    position = torch.argsort(order)
    moved = rebuilt(
        data,
        attributes=data.attributes[:, :, order],
        available=data.available[:, :, order],
        chosen=position[data.chosen],
    )
    torch.testing.assert_close(
        panel_log_prob(beta, difference_panels(moved)), panel_log_prob(beta, panel), atol=EXACT, rtol=0
    )


def test_a_constant_added_to_a_situation_changes_nothing(data, panel, beta, generator):
    shift = torch.randn(5, 3, 1, 5, generator=generator, dtype=torch.float64)
    moved = rebuilt(data, attributes=data.attributes + shift)
    torch.testing.assert_close(
        panel_log_prob(beta, difference_panels(moved)), panel_log_prob(beta, panel), atol=EXACT, rtol=0
    )


def test_unavailable_equals_removed(data, beta):
    """Closing the last alternative everywhere equals cutting it off."""
    chosen = data.chosen.clamp(max=2)
    available = data.available.clone()
    available.scatter_(2, chosen[..., None], value=True)
    without_last = available.clone()
    without_last[..., 3] = False
    with_unavailable = rebuilt(data, available=without_last, chosen=chosen)
    cut = rebuilt(data, attributes=data.attributes[:, :, :3], available=available[:, :, :3], chosen=chosen)
    torch.testing.assert_close(
        panel_log_prob(beta, difference_panels(with_unavailable)),
        panel_log_prob(beta, difference_panels(cut)),
        atol=EXACT,
        rtol=0,
    )


@pytest.mark.parametrize("size", [1.0, 30.0, 400.0])
def test_two_alternatives_equal_the_binary_logit(data, beta, size):
    """At sizes 30 and 400 differences exceed what exp() can hold in single precision."""
    two = rebuilt(
        data,
        attributes=data.attributes[:, :, :2],
        available=torch.ones(5, 3, 2, dtype=torch.bool),
        chosen=data.chosen.clamp(max=1),
    )
    x = two.attributes[:, :, 1] - two.attributes[:, :, 0]
    sign = 2.0 * two.chosen - 1.0
    tastes = (size * beta[0]).requires_grad_()
    v = torch.einsum("ntk,nk->nt", x, tastes)
    expected = (torch.nn.functional.logsigmoid(sign * v) * two.observed).sum(1)
    found = panel_log_prob(tastes, difference_panels(two))
    torch.testing.assert_close(found, expected, atol=EXACT * size, rtol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), tastes)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, atol=EXACT, rtol=0)


def test_probabilities_of_all_alternatives_agree_with_the_kernel(data, panel, beta):
    person = torch.arange(5).repeat_interleave(data.choices.panel_lengths)
    total = torch.zeros(7, 5, dtype=torch.float64)
    for situations, sets in data.choice_sets(100):
        probability = choice_probabilities(sets, beta.transpose(0, 1)[person[situations]])
        np.testing.assert_allclose(probability.sum(1).numpy(), 1.0, atol=1e-12)
        ranks = data.choices.chosen_ranks[situations]
        total.index_add_(1, person[situations], probability[torch.arange(len(ranks)), ranks].log().T)
    torch.testing.assert_close(total, panel_log_prob(beta, panel), atol=EXACT, rtol=0)


def test_chunks_cover_every_person_once(panel, beta):
    parts = [panel_log_prob(beta[0][part], chunk) for part, chunk in panel.chunks(2)]
    torch.testing.assert_close(torch.cat(parts), panel_log_prob(beta[0], panel), atol=0, rtol=0)
