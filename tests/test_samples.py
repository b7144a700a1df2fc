"""Pareto k against samples whose tail is known, smoothed weights against arviz."""

import json
import math

import numpy as np
import pytest
import torch

from mxlogit.diagnostics.psis import pareto_k, pareto_smoothed
from mxlogit.draws.curve import order_along_curve


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_shape_of_a_generalised_pareto_is_recovered(shape, generator):
    u = torch.rand(50, 4000, generator=generator, dtype=torch.float64)
    weights = ((1 - u) ** -shape - 1) / shape
    assert float(pareto_k(weights.log()).mean()) == pytest.approx(shape, abs=0.06)


def test_equal_weights_have_no_tail():
    assert float(pareto_k(torch.zeros(100))) == -float("inf")
    assert float(pareto_k(torch.zeros(8))) == -float("inf")


def test_shift_of_log_weights_does_not_matter(generator):
    log_weights = 3 * torch.randn(2, 500, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pareto_k(log_weights), pareto_k(log_weights + 100.0), atol=1e-9, rtol=0)


def test_smoothed_weights_equal_those_of_arviz(reference):
    """Shapes, largest weights and weighted sums of light and heavy tails."""
    known = json.loads((reference / "arviz_convergence.json").read_text())["pareto_smoothed"]
    for case in known.values():
        raw = case["size"] * np.random.default_rng(case["seed"]).standard_normal(1000)
        smooth, shape = pareto_smoothed(torch.from_numpy(raw))
        weights = smooth.exp()
        assert float(shape) == pytest.approx(case["k"], rel=1e-9)
        assert float(smooth.amax()) == pytest.approx(case["largest"], rel=1e-9)
        assert float(1.0 / weights.square().sum()) == pytest.approx(case["ess"], rel=1e-9)
        assert float((weights * torch.arange(1000)).sum()) == pytest.approx(case["weighted_index"], rel=1e-9)


def test_smoothing_leaves_flat_and_short_tails(generator):
    flat = torch.zeros(2, 100, dtype=torch.float64)
    smooth, shape = pareto_smoothed(flat)
    torch.testing.assert_close(smooth, torch.full_like(flat, -math.log(100)))
    assert torch.isneginf(shape).all()
    short = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pareto_smoothed(short)[0], short.log_softmax(-1))


def test_neighbours_along_the_curve_are_near_each_other(generator):
    points = torch.randn(4_096, 3, generator=generator, dtype=torch.float64)
    order = order_along_curve(points)
    assert order.sort().values.tolist() == list(range(4_096))
    step = (points[order].diff(dim=0)).norm(dim=1).mean()
    assert step < 0.25 * points.diff(dim=0).norm(dim=1).mean()
    assert torch.equal(order_along_curve(10.0 + 3.0 * points), order)


@pytest.mark.parametrize("size", [1, 2, 70])
def test_the_curve_takes_any_number_of_coordinates(size, generator):
    for n in (1, 2, 7):
        points = torch.randn(n, size, generator=generator, dtype=torch.float64)
        assert order_along_curve(points).sort().values.tolist() == list(range(n))
