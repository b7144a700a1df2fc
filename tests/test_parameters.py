"""Coordinates of the population: round trips, Jacobians and relative moves."""

import pytest
import torch

from mxlogit.model.parameters import ParameterSpace

SPACES = {
    "full": ParameterSpace(("a", "b"), tuple("cdefg"), ((0, 1, 2, 3, 4),)),
    "blocks": ParameterSpace(("a",), tuple("cdefg"), ((0, 3), (1, 2, 4))),
    "independent": ParameterSpace((), tuple("cd"), ((0,), (1,))),
    "fixed": ParameterSpace(("a", "b"), (), ()),
}


@pytest.fixture(params=SPACES)
def case(request, generator):
    space = SPACES[request.param]
    return space, 0.6 * torch.randn(space.size, generator=generator, dtype=torch.float64)


def test_unconstrained_round_trip(case):
    space, vector = case
    torch.testing.assert_close(space.unconstrain(space.constrain(vector)), vector, atol=1e-12, rtol=0)


def test_reported_round_trip(case):
    space, vector = case
    population = space.constrain(vector)
    again = space.from_report(space.report(population))
    torch.testing.assert_close(again.scale_tril, population.scale_tril, atol=1e-12, rtol=0)
    assert len(space.labels) == space.size == len(space.report(population))


def test_coefficients_of_different_blocks_are_independent():
    space = SPACES["blocks"]
    population = space.constrain(torch.linspace(-1, 1, space.size, dtype=torch.float64))
    covariance = population.scale_tril @ population.scale_tril.T
    assert covariance[0, 1] == 0
    assert covariance[0, 3] != 0
    assert space.labels[-4:] == ["cor.c:f", "cor.d:e", "cor.d:g", "cor.e:g"]


def test_leading_dimensions(case):
    space, vector = case
    many = torch.stack([vector, 0.5 * vector])
    population = space.constrain(many)
    torch.testing.assert_close(population.scale_tril[1], space.constrain(0.5 * vector).scale_tril, atol=0, rtol=0)
    torch.testing.assert_close(space.unconstrain(population), many, atol=1e-12, rtol=0)


def test_relative_jacobian_by_finite_differences(case):
    space, vector = case
    population, h = space.constrain(vector), 1e-6
    steps = h * torch.eye(space.size, dtype=torch.float64)
    up, down = (space.unconstrain(space.move(population, s)) for s in (steps, -steps))
    torch.testing.assert_close(space.relative_jacobian(population), ((up - down) / (2 * h)).T, atol=1e-8, rtol=0)


def test_moves_keep_zeros_between_blocks(case, generator):
    space, vector = case
    population = space.constrain(vector)
    moved = space.move(population, 0.3 * torch.randn(space.size, generator=generator, dtype=torch.float64))
    assert ((moved.scale_tril == 0) == (population.scale_tril == 0)).all()
