"""Samples that are a selection of weighted draws, with the moments of these."""

import pytest
import torch

from mxlogit.inference.vi.moment_matching import match_moments
from mxlogit.model.parameters import ParameterSpace


@pytest.fixture
def weighted():
    """Skewed vectors of one fixed and two correlated random coefficients, a standard deviation near zero, weights."""
    space, generator = ParameterSpace(("a",), ("x", "z"), ((0, 1),)), torch.Generator().manual_seed(3)
    normal = torch.randn(4_000, space.size, generator=generator, dtype=torch.float64)
    vectors = 0.3 * normal
    vectors[:, 3] -= 1.0 + normal[:, 3].square()
    return space, vectors, torch.rand(len(vectors), generator=generator, dtype=torch.float64).softmax(0), generator


def moments(space, vectors, weights):
    reported = space.report(space.constrain(vectors))
    mean = weights @ reported
    return mean, (weights @ (reported - mean).square()).sqrt()


def test_moments_become_those_of_the_weighted_draws(weighted):
    space, vectors, weights, generator = weighted
    selected = vectors[torch.multinomial(weights, 2_000, replacement=True, generator=generator)]
    matched = match_moments(space, selected, vectors, weights)
    even = torch.full((2_000,), 1.0 / 2_000, dtype=torch.float64)
    for found, expected in zip(moments(space, matched, even), moments(space, vectors, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    # The noise of the selection, about two per cent of a standard deviation, and no more.
    before, after = (space.report(space.constrain(x)) for x in (selected, matched))
    assert float(((after - before) / before.std(0)).abs().mean()) < 0.06


def test_few_samples_and_doubtful_moments_stay(weighted):
    space, vectors, weights, _ = weighted
    few = vectors[:50]
    assert match_moments(space, few, vectors, weights) is few
    # One draw far out makes the weighted moments.
    vectors, selected = vectors.clone(), vectors[:1_000].clone()
    vectors[-1, 3] = 9.0
    assert match_moments(space, selected, vectors, weights) is selected
    # A coordinate that does not vary.
    vectors[:, 3] = selected[:, 3] = 0.5
    assert match_moments(space, selected, vectors, weights) is selected
