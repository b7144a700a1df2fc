"""Proposals wide in one direction at a time: a normalised density, and tails that effective draws do not reveal."""

import math

import pytest
import torch

from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.weighted_draws import TARGET_ESS, PosteriorSampler
from mxlogit.inference.vi.wide_proposal import WideProposal


def bent_vectors(generator, size, n=4_000):
    """Vectors of a parabola: the second coordinate follows the square of the first."""
    vectors = torch.randn(n, size, generator=generator, dtype=torch.float64)
    vectors[:, 1] += 0.5 * vectors[:, 0] ** 2
    return vectors


def gaussian_of(vectors):
    return GaussianFactor(vectors.mean(0), torch.linalg.cholesky(torch.cov(vectors.T)))


@pytest.mark.parametrize("size", [2, 3, 7])
def test_draws_have_the_density_that_is_told(generator, size):
    """Ratios of a normal density to it average to one, and its draws weighed by them have the normal's moments.

    Errors of the draws are half of what is allowed; directions taken in turn, each half of a Sobol sequence, leave three
    times as much or more.
    """
    vectors = bent_vectors(generator, size)
    gaussian = gaussian_of(vectors)
    proposal = WideProposal.around(vectors, torch.full((4_000,), 1 / 4_000.0, dtype=torch.float64), gaussian)
    drawn = proposal.sample(1 << 14, generator)
    normal = torch.distributions.MultivariateNormal(gaussian.mean, scale_tril=gaussian.tril)
    ratio = (normal.log_prob(drawn) - proposal.log_prob(drawn)).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.008)
    whitened = gaussian.whitened(drawn)
    weights = ratio / ratio.sum()
    assert (weights @ whitened).abs().max() < 0.025
    assert (weights @ whitened.square() - 1.0).abs().max() < 0.02
    # A bend is found where there is one.
    assert proposal.bends.norm(dim=1)[0] > 0.3


class Ridge:
    """A normal bulk, and with a share a ridge that leads away from it along a parabola: moments in closed form."""

    share = 0.3

    def log_prob(self, points):
        along, beside = points[:, 0], points[:, 1]
        bulk = -0.5 * along**2 - 0.5 * (beside / 0.2) ** 2 - math.log(0.2)
        # Exponential along the ridge, of mean three, begun at zero.
        far = torch.where(along > 0.0, -along / 3.0, -math.inf) - math.log(3.0) + 0.5 * math.log(2.0 * math.pi)
        far = far - 0.5 * ((beside - 0.02 * along**2) / 0.2) ** 2 - math.log(0.2)
        return torch.logaddexp(math.log(1.0 - self.share) + bulk, math.log(self.share) + far)

    @property
    def moments(self):
        """Mean and standard deviation of the first coordinate: E[x^2] of the exponential is 18."""
        mean, square = 3.0 * self.share, (1.0 - self.share) + 18.0 * self.share
        return mean, math.sqrt(square - mean**2)


def test_a_ridge_is_found_that_effective_draws_do_not_show():
    """The first proposal is the bulk's: its effective draws suffice, and its standard deviation is too small."""
    start = GaussianFactor(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 0.2])).double())
    sampler = PosteriorSampler(Ridge(), start, torch.Generator().manual_seed(0))
    first = sampler.run(1_024, TARGET_ESS)
    mean, deviation = Ridge().moments
    assert first.ess > TARGET_ESS
    assert float(first.gaussian(0.0).tril[0].norm()) < 0.75 * deviation
    found = sampler.widen(first, 8_192, 1_000.0).gaussian(0.0)
    assert float(found.mean[0]) == pytest.approx(mean, abs=0.06 * deviation)
    assert float(found.tril[0].norm()) == pytest.approx(deviation, rel=0.16)
