"""From a specification and the moments of data to a model: parameters, mixing distributions, priors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.choices.moments import AttributeMoments, check_identification
from mxlogit.errors import SpecificationError
from mxlogit.model.class_prior import resolve_class_prior
from mxlogit.model.classes import ClassSpace
from mxlogit.model.latent_shifts import LatentShifts
from mxlogit.model.mean_shifters import Covariates, MeanShifters
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import PriorDensity, Priors, resolve_priors
from mxlogit.model.situation_deviations import SituationDeviations
from mxlogit.spec import Specification

# Prior standard deviation of what all hidden units of a network add to a mean, in natural units of the coefficient:
# weak (simulated sine of amplitude 1.2, 800 people: errors of the mean of .15 with 3, .19 with 1, .13 with 10).
_DEVIATION_OF_HIDDEN = 3.0
# Smallest eigenvalue of the correlation matrix of covariates below which one is a combination of the others.
_COLLINEAR = 1e-10


def build_model(
    specification: Specification,
    moments: AttributeMoments,
    priors: Priors | None,
    offsets: tuple[float, ...] = (),
    everybody: Covariates | None = None,
) -> MixedLogitModel:
    """Check identification and resolve the priors for data with these moments.

    ``offsets`` were subtracted from the covariates of products; ``everybody`` has the covariates of all people.
    """
    priors = Priors(standardize=True) if priors is None else priors
    if not isinstance(priors, Priors):
        raise SpecificationError(f"priors must be None or Priors(...); got {priors!r}.")
    held = tuple((specification.names.index(name), value) for name, value in specification.held)
    space = _make_space(specification, held, everybody)
    if space.size == 0:
        raise SpecificationError("nothing to estimate: all coefficients are held.")
    _check_labels([*space.labels, *(getattr(space, "share_labels", ()))])
    regularised = _effects_of_hidden_units(specification)
    exempt = {*dict(specification.held), *(label for _, label in specification.copies)}
    exempt |= {specification.names[place] for place in regularised.values()}
    scales = check_identification(moments, specification.names, specification.products, exempt)
    mixing = Mixing(specification.mixing, specification.scale_position, *_more(specification))
    units = _units_of_parameters(scales, mixing.scale_position)
    for i in specification.latent_effects:
        # A unit of an effect on a latent normal is that of the latent per typical difference of the covariate.
        taste, effect = specification.names.index(specification.shifters[i][0]), specification.products[i]
        linear = mixing.families[taste - space.n_fixed].units == "linear"
        place = specification.names.index(effect)
        units[place] = scales[place] = (units[taste] if linear else 1.0) * _deviation(specification, i, everybody)
    prior = resolve_priors(priors, mixing, space.n_fixed, units)
    if regularised:
        prior = _with_prior_of_hidden_units(prior, specification, regularised, mixing, units, everybody)
    if mixing.varying is not None:
        prior = _with_prior_of_deviations(prior, priors, mixing.varying, units)
    if isinstance(space, ClassSpace):
        prior = resolve_class_prior(prior, _deviations(specification.membership, everybody))
    shifters = _mean_shifters(specification, offsets)
    attribute_scale = torch.tensor(scales, dtype=torch.float64)
    return MixedLogitModel(space, mixing, prior, attribute_scale, shifters, tuple(regularised.values()))


def _make_space(
    specification: Specification, held: tuple[tuple[int, float], ...], everybody: Covariates | None
) -> ParameterSpace:
    """Layout of the parameters, of one class or of several."""
    plain = ParameterSpace(specification.fixed, specification.random, specification.blocks, held)
    mixture = specification.mixture
    if mixture is None:
        return plain
    offsets = tuple(_of_membership(specification.membership, everybody).moments()[0].tolist())
    return ClassSpace(
        *(plain.fixed, plain.random, plain.blocks, plain.held, mixture.classes),
        ignored=mixture.places_ignored(specification.names),
        is_spread=mixture.spread is None,
        covariates=specification.membership,
        offsets=offsets,
    )


def _of_membership(names: tuple[str, ...], everybody: Covariates | None) -> Covariates:
    """The covariates of membership, which are the last ones."""
    if everybody is None:
        return Covariates(torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    return Covariates(everybody.values[:, everybody.values.shape[1] - len(names) :], everybody.weights)


def _deviations(names: tuple[str, ...], everybody: Covariates | None) -> Tensor:
    """Standard deviations of the covariates of membership over people.

    Raises
    ------
    SpecificationError
        If some are constant, or linear combinations of others.
    """
    spread = _of_membership(names, everybody).moments()[1]
    found = spread.diagonal().clamp(min=0.0).sqrt()
    size = _of_membership(names, everybody).values.abs().amax(0)
    constant = [name for i, name in enumerate(names) if not float(found[i]) > _COLLINEAR * float(size[i])]
    if constant:
        raise SpecificationError(
            f"Mixture(membership=...): {constant} have the same value for all decision makers, so no effect on "
            "membership can be seen; leave them out."
        )
    if len(names) and float(torch.linalg.eigvalsh(spread / (found[:, None] * found)).amin()) < _COLLINEAR:
        raise SpecificationError(
            f"Mixture(membership=...): of {list(names)} one is a linear combination of the others; leave one out."
        )
    return found


def _mean_shifters(specification: Specification, offsets: tuple[float, ...]) -> MeanShifters:
    """Positions of the effects of covariates, and of the coefficients that they shift."""
    names, covariates = specification.names, specification.covariates
    return MeanShifters(
        tuple(names.index(label) for label in specification.products),
        tuple(names.index(column) for column, _ in specification.shifters),
        tuple(covariates.index(covariate) for _, covariate in specification.shifters),
        covariates,
        offsets or (0.0,) * len(specification.shifters),
        tuple(i in specification.latent_effects for i in range(len(specification.shifters))),
    )


def _effects_of_hidden_units(specification: Specification) -> dict[int, int]:
    """Positions of the effects of hidden units among all coefficients, by their indices among the shifters."""
    pairs = enumerate(zip(specification.shifters, specification.products, strict=True))
    return {i: specification.names.index(label) for i, ((_, name), label) in pairs if name in specification.features}


def _with_prior_of_hidden_units(
    prior: PriorDensity,
    specification: Specification,
    effects: dict[int, int],
    mixing: Mixing,
    units: list[float],
    everybody: Covariates | None,
) -> PriorDensity:
    """Priors of the effects of hidden units under which these together have a standard deviation of three units."""
    counts, deviation = Counter(specification.shifters[i][0] for i in effects), prior.deviation.clone()
    for i, place in effects.items():
        column = specification.shifters[i][0]
        taste, f = specification.names.index(column), len(specification.fixed)
        linear = taste < f or mixing.families[taste - f].units == "linear"
        unit = (units[taste] if linear else 1.0) * _deviation(specification, i, everybody)
        deviation[place] = _DEVIATION_OF_HIDDEN / (unit * counts[column] ** 0.5)
    return replace(prior, deviation=deviation)


def _with_prior_of_deviations(
    prior: PriorDensity, priors: Priors, varying: SituationDeviations, units: list[float]
) -> PriorDensity:
    """Half-normal priors, in their sizes, of standard deviations between situations: normal about zero."""
    deviation = prior.deviation.clone()
    for place in varying.deviations:
        deviation[place] = priors.sd_scale / (units[place] if priors.standardize else 1.0)
    return replace(prior, deviation=deviation)


def _more(specification: Specification) -> tuple[LatentShifts | None, SituationDeviations | None]:
    """Effects of covariates on latent normals, and deviations between situations, if there are any."""
    names = specification.names
    deviations = tuple(names.index(label) for _, label in specification.copies)
    coefficients = tuple(names.index(column) for column in specification.within)
    varying = SituationDeviations(deviations, coefficients) if specification.within else None
    return _latent_shifts(specification), varying


def _latent_shifts(specification: Specification) -> LatentShifts | None:
    """Effects of covariates on latent normals, whose covariates stand in panels in their order; None without any."""
    mine = specification.latent_effects
    effects = tuple(specification.names.index(specification.products[i]) for i in mine)
    tastes = tuple(specification.random.index(specification.shifters[i][0]) for i in mine)
    return LatentShifts(effects, tastes, tuple(range(len(mine))), len(specification.random)) if mine else None


def _deviation(specification: Specification, i: int, everybody: Covariates | None) -> float:
    """Standard deviation over people of the covariate of a shifter."""
    assert everybody is not None
    place = specification.covariates.index(specification.shifters[i][1])
    return float(everybody.moments()[1][place, place].sqrt())


def _units_of_parameters(scales: list[float], scale_position: int | None) -> list[float]:
    """Typical differences of the attributes; in willingness-to-pay space in units of those of the scale column."""
    if scale_position is None:
        return scales
    cost = scales[scale_position]
    return [scale if i == scale_position else scale / cost for i, scale in enumerate(scales)]


def _check_labels(labels: list[str]) -> None:
    """Refuse columns that have the label of another parameter, such as ``sd.x`` beside a random ``x``."""
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise SpecificationError(
            f"{repeated} would each label two parameters: a column has the name of a standard deviation (sd.<column>) "
            "correlation (cor.<a>:<b>), membership or share of this model. Rename it."
        )
