"""Covariance families of local Gaussians against dense algebra."""

import pytest
import torch

from mxlogit import SVI, SpecificationError
from mxlogit.guide.encoder import Encoder, SetEncoder
from mxlogit.guide.families import family_rank, family_size, low_rank_factor, make_factor, whiten

FAMILIES = ["full", "diagonal", "rank1", "rank2", "rank3"]


def check_against_dense(factor, precision):
    covariance = torch.linalg.inv(precision)
    torch.testing.assert_close(factor.covariance, covariance, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(factor.precision_tril @ factor.precision_tril.mT, precision, atol=1e-10, rtol=1e-10)
    identity = torch.eye(precision.shape[-1], dtype=torch.float64).expand_as(precision)
    torch.testing.assert_close(factor.precision_tril.mT @ factor.root, identity, atol=1e-10, rtol=0)
    torch.testing.assert_close(factor.log_det, 0.5 * torch.linalg.slogdet(covariance).logabsdet, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_low_rank_precision(rank, k, generator):
    diagonal = torch.rand(5, k, generator=generator, dtype=torch.float64) + 0.2
    columns = torch.randn(5, k, rank, generator=generator, dtype=torch.float64)
    columns[0] = 0.0
    factor = low_rank_factor(torch.zeros(5, k).double(), diagonal, columns)
    check_against_dense(factor, torch.diag_embed(diagonal) + columns @ columns.mT)


@pytest.mark.parametrize("size", [0.0, 1e-8, 1e8])
def test_one_column_is_stable_with_finite_gradients(size):
    """Where the textbook form is nought by nought, and where the column dwarfs the diagonal."""
    direction = torch.tensor([[[0.6], [-0.8], [0.0]]], dtype=torch.float64)
    columns = (size * direction).requires_grad_()
    factor = low_rank_factor(torch.zeros(1, 3).double(), torch.ones(1, 3).double(), columns)
    along = (direction.mT @ factor.covariance @ direction)[0, 0, 0]
    assert float(along.detach()) == pytest.approx(1.0 / (1.0 + size**2), rel=1e-6)
    (gradient,) = torch.autograd.grad(factor.root.sum(), columns, retain_graph=True)
    assert bool(torch.isfinite(gradient).all())
    # Log determinant of the root of the covariance: -log(1 + size^2) / 2.
    (gradient,) = torch.autograd.grad(factor.log_det.sum(), columns)
    torch.testing.assert_close(gradient, -size / (1.0 + size**2) * direction, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_factor_of_a_family(covariance, generator):
    k = 4
    numbers = 0.5 * torch.randn(6, family_size(covariance, k), generator=generator, dtype=torch.float64)
    mean = torch.randn(6, k, generator=generator, dtype=torch.float64)
    factor = make_factor(covariance, mean, numbers)
    check_against_dense(factor, torch.linalg.inv(factor.covariance))
    unit = make_factor(covariance, mean, 0.0 * numbers)
    torch.testing.assert_close(unit.covariance, torch.eye(k).double().expand(6, k, k), atol=1e-12, rtol=0)
    normal = torch.distributions.MultivariateNormal(mean, factor.covariance)
    points = torch.randn(6, k, generator=generator, dtype=torch.float64)
    whitened = (factor.precision_tril.mT @ (points - mean)[..., None])[..., 0]
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(whitened).sum(-1) - factor.log_det
    torch.testing.assert_close(log_prob, normal.log_prob(points), atol=1e-10, rtol=0)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_encoder_of_a_family_begins_near_newton_and_learns(covariance, model, panel, generator):
    """It begins at the Newton mean; every weight gets a gradient; diagonal factors have no correlations."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = SetEncoder(3, model.mixing, Encoder(width=8, covariance=covariance)).double()
        whole = SetEncoder(3, model.mixing, Encoder(width=8)).double()
    population = model.space.constrain(0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))
    factor, full = encoder(population, panel), whole(population, panel)
    torch.testing.assert_close(factor.mean, full.mean, atol=1e-9, rtol=0)
    if covariance == "diagonal":
        torch.testing.assert_close(factor.covariance, torch.diag_embed(factor.covariance.diagonal(dim1=1, dim2=2)))
    (factor.mean.sum() + factor.log_det.sum() + factor.covariance.square().sum()).backward()
    assert float(encoder.head.weight.grad.abs().sum(1).min()) > 0.0


def test_latent_factor_in_whitened_coordinates(model, generator):
    """Against dense algebra: mean and covariance of L^-1 (eta - zeta), and its log density with the Jacobian."""
    population = model.space.constrain(0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))
    mean = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    numbers = 0.5 * torch.randn(6, family_size("rank1", 3), generator=generator, dtype=torch.float64)
    latent = make_factor("rank1", mean, numbers)
    factor, inverse = whiten(latent, population), torch.linalg.inv(population.scale_tril)
    torch.testing.assert_close(factor.mean, (mean - population.location) @ inverse.mT)
    check_against_dense(factor, torch.linalg.inv(inverse @ latent.covariance @ inverse.mT))


@pytest.mark.parametrize("covariance", ["diagonal", "rank1"])
def test_centred_encoder(covariance, model, panel, generator):
    """Mean as without, at first; a diagonal covariance is that of the latents and none of whitened tastes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = SetEncoder(3, model.mixing, Encoder(8, covariance=covariance, coordinates="centred")).double()
        whole = SetEncoder(3, model.mixing, Encoder(width=8)).double()
    population = model.space.constrain(0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))
    factor = encoder(population, panel)
    torch.testing.assert_close(factor.mean, whole(population, panel).mean, atol=1e-9, rtol=0)
    latent = population.scale_tril @ factor.covariance @ population.scale_tril.mT
    outside = latent - torch.diag_embed(latent.diagonal(dim1=1, dim2=2))
    assert (float(outside.detach().abs().max()) < 1e-12) == (covariance == "diagonal")


def test_full_covariances_have_no_centred_form():
    with pytest.raises(SpecificationError, match="same family in both coordinates"):
        SVI(encoder=Encoder(coordinates="centred")).check()
    SVI(encoder=Encoder(covariance="rank1", coordinates="centred")).check()


def test_unknown_families_are_named():
    for name in ("rank", "rank0", "low", "rank-1"):
        with pytest.raises(SpecificationError, match=f"got '{name}'"):
            SVI(encoder=Encoder(covariance=name)).check()
    assert family_rank("rank12") == 12
