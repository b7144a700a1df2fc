"""Proposals around a standard deviation of zero: normalised, and where they are needed."""

import math
import warnings

import numpy as np
import pytest
import torch

from mxlogit import VI, ConvergenceWarning, MixedLogit, Priors
from mxlogit.draws.generators import make_generator
from mxlogit.inference.vi.tail_proposal import TailProposal, is_zero_near
from mxlogit.model.coordinates import RelativeCholeskyCoordinates
from mxlogit.model.parameters import ParameterSpace
from mxlogit.simulate import simulate_choices

SPACES = {
    "two tastes": ParameterSpace(("f",), ("a", "b"), ((0, 1),)),
    "blocks": ParameterSpace((), ("a", "b", "c"), ((0, 2), (1,))),
    "three tastes": ParameterSpace((), ("a", "b", "c"), ((0, 1, 2),)),
}


def around(space, generator, scale=0.5):
    """A proposal fitted to random populations, and points of these."""
    vectors = scale * torch.randn(400, space.size, generator=generator, dtype=torch.float64) - 0.3
    root = torch.diag(torch.linspace(0.5, 2.0, space.n_random, dtype=torch.float64))
    coordinates = RelativeCholeskyCoordinates(space, root)
    points = coordinates.from_unconstrained(vectors)
    weights = torch.rand(400, generator=generator, dtype=torch.float64)
    return coordinates, TailProposal.around(coordinates, points, weights / weights.sum()), points


@pytest.mark.parametrize("name", SPACES)
def test_a_tail_proposal_is_a_density(name, generator):
    """Its integral by importance sampling from a wide t in the points' own coordinates; only up to sampling error."""
    space = SPACES[name]
    coordinates, proposal, _ = around(space, generator)
    drawn = proposal.sample(4_096, make_generator(3))
    assert torch.isfinite(proposal.log_prob(drawn)).all()
    # A normal in unconstrained vectors is a density over points as well, by the same Jacobian: ratios average to one.
    vectors = coordinates.to_unconstrained(drawn)
    mean, deviation = vectors.mean(0), vectors.std(0)
    log_normal = (
        -0.5 * (((vectors - mean) / deviation).square() + math.log(2.0 * math.pi)).sum(1) - deviation.log().sum()
    )
    jacobian = torch.autograd.functional.jacobian(coordinates.to_unconstrained, drawn[0])
    constant = torch.linalg.slogdet(jacobian).logabsdet - coordinates.log_jacobian(drawn[:1])[0]
    ratio = (log_normal + coordinates.log_jacobian(drawn) + constant - proposal.log_prob(drawn)).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5.0 * float(ratio.std()) / 64.0)
    assert float(ratio.std()) < 3.0


def test_points_nowhere_have_no_density(generator):
    _, proposal, points = around(SPACES["two tastes"], generator)
    nowhere = points[:3].clone()
    nowhere[:, 3] *= -1.0
    assert torch.isneginf(proposal.log_prob(nowhere)).all()
    assert torch.isfinite(proposal.log_prob(points)).all()


def test_zero_is_near_where_standard_deviations_are_hardly_known(generator):
    equal = torch.full((400,), 1.0 / 400.0, dtype=torch.float64)
    for scale, near in ((0.05, False), (0.9, True)):
        coordinates, _, points = around(SPACES["two tastes"], generator, scale)
        assert is_zero_near(coordinates, points, equal) is near
    alone = ParameterSpace((), ("a",), ((0,),))
    coordinates, _, points = around(alone, generator, 0.9)
    assert not is_zero_near(coordinates, points, equal)


# By `Quadrature(frame, ["x", "z"], 30).moments(..., 16_384)` of `quadrature.py`: means and standard deviations.
EXACT = np.array([-1.120, 0.700, 0.468, 0.573, -0.760]), np.array([0.113, 0.104, 0.161, 0.141, 0.228])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_correlation_beside_a_small_standard_deviation(seed):
    """150 people, three choices: its standard deviation was .86 to .92 of the right one."""
    frame, _ = simulate_choices(150, 3, 4, random={"x": (-1.0, 0.5), "z": (0.6, 0.5)}, random_state=5)
    est = MixedLogit(random=["x", "z"], priors=Priors(), method=VI(), random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        table = est.fit(frame).summary()
    ratio = table["std_error"].to_numpy() / EXACT[1]
    assert (ratio > 0.95).all(), ratio
    assert (ratio < 1.06).all(), ratio
    assert (np.abs(table["estimate"].to_numpy() - EXACT[0]) < 0.06 * EXACT[1]).all()
