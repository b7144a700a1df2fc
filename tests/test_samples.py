"""Pareto k against samples whose tail is known."""

import pytest
import torch

from mxlogit.samples import pareto_k


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
