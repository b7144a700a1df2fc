"""Small models, their prior drawn by hand, and what of it has moments: for tests of samplers."""

import math

import torch

from mxlogit.choices import ChoiceData
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.priors import Priors, resolve_priors
from mxlogit.sampling.covariance import HuangWand, InverseWishart, draw_inverse_wishart

SPACE = ParameterSpace(("f",), ("a", "b"), ((0, 1),))
PRIORS = [None, InverseWishart(location_precision=0.5), InverseWishart(location_precision=None), HuangWand()]


def model_of(space=SPACE, families=("normal", "normal"), priors=None):
    mixing = Mixing(families)
    count = space.n_fixed + space.n_random
    prior = resolve_priors(priors or Priors(location_scale=1.0, sd_scale=0.5), mixing, space.n_fixed, [1.0] * count)
    return MixedLogitModel(space, mixing, prior, torch.ones(count, dtype=torch.float64))


def panel_of(n, t, others, space, generator):
    values = torch.randn(n, t * others, space.n_fixed + space.n_random, generator=generator, dtype=torch.float64)
    return PanelDifferences.regular(values, others)


def rebuilt(data, **changes):
    """Choice data with some of its padded arrays changed."""
    padded = data.padded()
    arrays = {
        name: changes.get(name, getattr(padded, name)) for name in ("attributes", "available", "observed", "chosen")
    }
    observed = arrays["observed"]
    return ChoiceData.from_arrays(
        arrays["attributes"],
        arrays["chosen"],
        names=data.names,
        available=arrays["available"],
        observed=observed,
        weights=changes.get("weights", data.weights),
        decision_makers=data.decision_makers,
    )


def prior_populations(model, settings, chains, noise):
    """Draws from the prior, by other routes than the sampler's."""
    space, prior, like = model.space, model.prior, model.prior.mean
    f, k = space.n_fixed, space.n_random
    unit = noise.normal(f + k, like=like)
    coefficients = prior.mean + prior.deviation * unit
    if settings is None:
        generator = torch.Generator().manual_seed(4)
        scale = prior.sd_scale * (0.5 * math.pi * torch.rand(chains, k, generator=generator).double()).tan()
        correlation = 2.0 * torch.rand(chains, generator=generator).double() - 1.0
        tril = torch.zeros(chains, k, k).double()
        tril[:, 0, 0] = scale[:, 0]
        tril[:, 1, 0] = scale[:, 1] * correlation
        tril[:, 1, 1] = scale[:, 1] * (1.0 - correlation.square()).sqrt()
    elif isinstance(settings, HuangWand):
        rate = prior.sd_scale.square().reciprocal()
        inverse_a = noise.gamma([0.5] * k, like) / rate
        products = torch.diag_embed(2.0 * settings.degrees_of_freedom * inverse_a)
        tril = draw_inverse_wishart(settings.degrees_of_freedom + k - 1.0, products, noise)
    else:
        freedom = settings.degrees_of_freedom or k + 3.0
        products = (settings.scale or freedom) * torch.eye(k).double().expand(chains, k, k)
        tril = draw_inverse_wishart(freedom, products, noise)
        if settings.location_precision is not None:
            location = (tril @ unit[:, f:, None])[..., 0] / settings.location_precision**0.5
            return PopulationParameters(coefficients[:, :f], location, tril)
    return PopulationParameters(coefficients[:, :f], coefficients[:, f:], tril)


def summaries(population):
    """Quantities with finite moments under every prior, (chains, 6)."""
    scale = population.scale
    covariance = population.scale_tril @ population.scale_tril.mT
    correlation = covariance[:, 1, 0] / (scale[:, 0] * scale[:, 1])
    squashed = torch.cat([population.fixed, population.location], -1) / 3.0
    return torch.cat([squashed.atan(), scale.log(), correlation[:, None]], -1)
