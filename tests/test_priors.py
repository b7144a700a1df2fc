"""Priors against torch's distributions."""

import pytest
import torch
from torch.distributions import HalfCauchy, LKJCholesky, Normal

from mxlogit import Priors, SpecificationError
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import resolve_priors


@pytest.fixture
def parts(generator):
    space = ParameterSpace(("a",), tuple("cdefg"), ((0, 3), (1, 2, 4)))
    prior = resolve_priors(Priors(2.0, 1.5, 1.7), Mixing(["normal"] * 5), 1, [1.0] * 6)
    return space, prior, torch.randn(space.size, generator=generator, dtype=torch.float64)


def test_density_equals_torch_distributions(parts):
    space, prior, vector = parts
    population = space.constrain(vector)
    two, spread = torch.tensor([2.0, 1.5], dtype=torch.float64)
    expected = Normal(0.0 * two, two).log_prob(vector[:6]).sum()
    expected += (HalfCauchy(spread).log_prob(population.scale) + population.scale.log()).sum()
    factors, jacobians = space.correlation_tril(space.split(vector)[3])
    for factor, jacobian in zip(factors, jacobians, strict=True):
        concentration = torch.tensor(1.7, dtype=torch.float64)
        expected += LKJCholesky(len(factor), concentration).log_prob(factor) + jacobian
    torch.testing.assert_close(prior.log_prob(space, vector), expected, atol=1e-9, rtol=0)


def test_derivatives_equal_autograd(parts):
    space, prior, vector = parts
    gradient, diagonal = prior.derivatives(space, vector)
    point = vector.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(prior.log_prob(space, point), point)
    torch.testing.assert_close(gradient, by_autograd, atol=1e-12, rtol=0)
    hessian = torch.autograd.functional.hessian(lambda x: prior.log_prob(space, x), vector)
    torch.testing.assert_close(hessian, diagonal.diag(), atol=1e-10, rtol=0)


def test_standardised_priors_follow_units():
    """Measuring an attribute in other units moves the prior so that utilities keep theirs."""
    mixing = Mixing(["normal", "lognormal", "johnson_sb"])
    one = resolve_priors(Priors(standardize=True), mixing, 1, [1.0, 1.0, 1.0, 1.0])
    other = resolve_priors(Priors(standardize=True), mixing, 1, [1e3, 1e3, 1e3, 1e3])
    assert other.deviation[:2].tolist() == pytest.approx([0.01, 0.01])
    assert other.deviation[2:].tolist() == one.deviation[2:].tolist()
    assert other.sd_scale.tolist() == pytest.approx([2.5e-3, 2.5, 2.5])
    assert other.mean.tolist() == pytest.approx([0, 0, -torch.tensor(1e3).log().item(), 0])


@pytest.mark.parametrize("name", ["location_scale", "sd_scale", "correlation_concentration"])
def test_scales_must_be_positive(name):
    with pytest.raises(SpecificationError, match=name):
        Priors(**{name: 0.0}).check()
