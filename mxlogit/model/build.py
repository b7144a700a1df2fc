"""From a specification and the moments of data to a model: parameters, mixing distributions, priors."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mxlogit.choices.moments import AttributeMoments, check_identification
from mxlogit.errors import SpecificationError
from mxlogit.model.class_prior import resolve_class_prior
from mxlogit.model.classes import ClassSpace
from mxlogit.model.mean_shifters import Covariates, MeanShifters
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import Priors, resolve_priors
from mxlogit.spec import Specification

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
    scales = check_identification(moments, specification.names, specification.products, dict(specification.held))
    mixing = Mixing(specification.mixing, specification.scale_position)
    prior = resolve_priors(priors, mixing, space.n_fixed, _units_of_parameters(scales, mixing.scale_position))
    if isinstance(space, ClassSpace):
        prior = resolve_class_prior(prior, _deviations(specification.membership, everybody))
    shifters = _mean_shifters(specification, offsets)
    return MixedLogitModel(space, mixing, prior, torch.tensor(scales, dtype=torch.float64), shifters)


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
    )


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
