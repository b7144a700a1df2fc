"""Starting values: the multinomial logit, with the prior, by Newton steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from mxlogit.choices.chunks import PEOPLE_AT_ONCE
from mxlogit.errors import SpecificationError
from mxlogit.execution.people import PanelSource, People, dense_pieces
from mxlogit.model.likelihood import panel_derivatives
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.wtp_space import coefficient_jacobian

# Predicted gain, relative to the log likelihood, at which Newton steps end: less is lost in rounding.
_ROUNDING = {torch.float32: 1e-10, torch.float64: 1e-14}
# Smallest effect of the scale column, in utils per typical difference, for which willingness to pay is meaningful.
_SMALLEST_SCALE = 1e-3
# Test of separation: people of its first linear program, most rows added per process and round, and most rounds; chosen
# by hand.
_SEPARATION_PEOPLE = 2_000
_SEPARATION_ROWS = 1_000
_SEPARATION_ROUNDS = 50
# Smallest gain in utility, in scaled coefficients, that counts: more than the feasibility tolerance of the program.
_GAIN = 1e-6


@dataclass(frozen=True)
class MultinomialLogit:
    """Posterior mode of a multinomial logit (all coefficients fixed), float64.

    Attributes
    ----------
    coefficients : Tensor, shape (k,)
    log_likelihood : float
    information : Tensor, shape (k, k)
        Minus the Hessian of the log likelihood, without the prior.
    """

    coefficients: Tensor
    log_likelihood: float
    information: Tensor


def fit_multinomial_logit(
    people: People, prior_deviation: Tensor, steps: int = 50, *, held: Sequence[tuple[int, float]] = ()
) -> MultinomialLogit:
    """Fit a multinomial logit with a N(0, prior_deviation^2) prior, by Newton steps with halving.

    Parameters
    ----------
    people : People
    prior_deviation : Tensor, shape (k,)
        Prior standard deviations; infinite without a prior.
    steps : int
        Largest number of Newton steps.
    held : sequence of (int, float)
        Positions of coefficients that are not estimated, and their values; no information is given about them.

    Returns
    -------
    MultinomialLogit
    """
    precision = prior_deviation.reciprocal().square()
    point, free = torch.zeros_like(prior_deviation), torch.ones_like(prior_deviation)
    for position, number in held:
        point[position], free[position] = number, 0.0
    value, gradient, information = _sum_derivatives(point, people)
    objective = value - 0.5 * float(precision @ point.square())
    for _ in range(steps):
        slope = free * (gradient - precision * point)
        known = free[:, None] * (information + precision.diag()) * free + (1.0 - free).diag()
        step = _solve_scaled(known, slope)
        if 0.5 * float(slope @ step) < _ROUNDING[people.like.dtype] * max(1.0, abs(value)):
            break
        for _ in range(30):
            candidate = point + step
            new_value, new_gradient, new_information = _sum_derivatives(candidate, people)
            new_objective = new_value - 0.5 * float(precision @ candidate.square())
            if new_objective >= objective:
                break
            step = 0.5 * step
        else:
            break
        point, value, objective = candidate, new_value, new_objective
        gradient, information = new_gradient, new_information
    return MultinomialLogit(point, value, free[:, None] * information * free)


def _solve_scaled(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a positive semidefinite system after scaling its diagonal to one, independently of units."""
    scale = matrix.diagonal().clamp(min=1e-300).rsqrt()
    scaled = scale[:, None] * matrix * scale + 1e-12 * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return scale * torch.linalg.solve(scaled, scale * right)


def _sum_derivatives(point: Tensor, people: People) -> tuple[float, Tensor, Tensor]:
    size = len(point)
    value, gradient, information = (people.like.new_zeros(n, dtype=torch.float64) for n in (1, size, (size, size)))
    for _, part in dense_pieces(people.panels, PEOPLE_AT_ONCE):
        at = panel_derivatives(part.values @ point.to(part.values), part)
        weight = part.weights.double()
        value += at.log_prob.double() @ weight
        gradient += at.gradient.double().T @ weight
        information += (at.information.flatten(1).double().T @ weight).view(size, size)
    value, gradient, information = people.team.all_reduce_sum(value, gradient, information)
    return float(value), gradient, information


def in_wtp_space(model: MixedLogitModel, logit: MultinomialLogit) -> tuple[MixedLogitModel, MultinomialLogit]:
    """Convert a model's units and its logit's coefficients to willingness-to-pay space, if the model is in it.

    Raises
    ------
    SpecificationError
        If the scale column has no effect on choices: nothing can be expressed in its units.
    """
    position = model.mixing.scale_position
    if position is None:
        return model, logit
    coefficient = logit.coefficients[position]
    if float(coefficient.abs() * model.attribute_scale[position]) < _SMALLEST_SCALE:
        raise SpecificationError(
            f"the scale column {(*model.space.fixed, *model.space.random)[position]!r} hardly affects choices: its "
            f"multinomial logit coefficient is {float(coefficient):.2g}, so nothing can be valued in its units."
        )
    money = -logit.coefficients / coefficient
    money[position] = coefficient
    unit = model.attribute_scale * coefficient.abs()
    # Effects on latent normals are not in money.
    kept = [position, *(model.mixing.shifts.effects if model.mixing.shifts is not None else ())]
    unit[kept] = model.attribute_scale[kept]
    jacobian = coefficient_jacobian(money[None, :, None], position)[0, ..., 0]
    information = jacobian.T @ logit.information @ jacobian
    return replace(model, attribute_scale=unit), replace(logit, coefficients=money, information=information)


def prior_of_logit(model: MixedLogitModel) -> Tensor:
    """Prior standard deviations (k,) of coefficients in utils, with the scale column of typical size."""
    position, deviation = model.mixing.scale_position, model.prior.deviation
    if position is None:
        return deviation
    in_utils = deviation / model.attribute_scale[position]
    in_utils[position] = deviation[position]
    return in_utils


def weakly_identified(logit: MultinomialLogit, prior_deviation: Tensor, estimated: Sequence[int]) -> Tensor:
    """Indices of weakly identified coefficients among those estimated, whose posterior is dominated by the prior.

    They dominate a direction in which the information of the data is below 30 times the precision of the prior, a sign
    of separation or of very few choices.
    """
    places = torch.tensor(estimated, dtype=torch.int64)
    deviation = prior_deviation[places]
    values, vectors = torch.linalg.eigh(deviation[:, None] * logit.information[places][:, places] * deviation)
    weak = vectors[:, values < 30.0].abs()
    return places[(weak > 0.5).any(-1)]


def is_separated(people: People) -> bool:
    """Whether some coefficients predict every choice perfectly (Albert and Anderson 1984, Biometrika 71).

    The test searches for a direction in which no chosen alternative loses and at least one gains. A linear program over
    a sample of people proposes a direction; rows of other people that contradict it are added until none does.
    """
    rows = _gather_rows(people, people.take(people.draw(_SEPARATION_PEOPLE, (0, 23))).panels)
    scale = np.maximum(np.abs(rows).max(0), 1e-300)
    for _ in range(_SEPARATION_ROUNDS):
        matrix = rows / scale
        result = linprog(matrix.sum(0), A_ub=matrix, b_ub=np.zeros(len(matrix)), bounds=(-1.0, 1.0), method="highs")
        if result.status != 0 or result.fun >= -_GAIN:
            return False
        # Coefficients are scaled, so rows are of order one; the feasibility tolerance of the program is 1e-7.
        against = _gather_rows(people, people.panels, torch.from_numpy(result.x / scale))
        if len(against) == 0:
            return True
        rows = np.concatenate([rows, against])
    return False


def _gather_rows(people: People, panels: PanelSource, direction: Tensor | None = None) -> np.ndarray:
    """Rows of available alternatives of all processes; given a direction, some rows that gain utility in it."""
    kept = []
    for _, panel in panels.chunks(PEOPLE_AT_ONCE):
        rows = panel.available_rows().values.double().cpu()
        if direction is not None:
            rows = rows[rows @ direction > _GAIN][:_SEPARATION_ROWS]
        kept.append(rows)
    mine = torch.cat(kept) if kept else torch.zeros(0, panels.n_columns, dtype=torch.float64)
    mine = mine if direction is None else mine[:_SEPARATION_ROWS]
    return np.concatenate(people.team.gather(mine.numpy()))


def is_logit(model: MixedLogitModel) -> bool:
    """Whether a model is a multinomial logit: nothing is random."""
    return model.space.n_random == 0 and model.mixing.varying is None and model.mixing.scale_position is None


def evidence_of_logit(model: MixedLogitModel, fixed: Tensor, log_likelihood: float, logit: MultinomialLogit) -> float:
    """Log marginal likelihood of a multinomial logit by Laplace's method, at its estimates (f,).

    ``logit`` has the information of all people. The relative error falls with the number of choices (Tierney and Kadane
    1986, J. of the American Statistical Association 81).
    """
    free = model.space.means
    mean, deviation = model.prior.mean[free], model.prior.deviation[free]
    information = logit.information[free][:, free]
    log_prior = torch.distributions.Normal(mean, deviation).log_prob(fixed[free].to(mean)).sum()
    curvature = information + deviation.square().reciprocal().diag()
    volume = 0.5 * len(free) * math.log(2.0 * math.pi) - 0.5 * torch.logdet(curvature)
    return log_likelihood + float(log_prior + volume)


def unknown_to_logit(model: MixedLogitModel) -> tuple[int, ...]:
    """Positions of the fixed coefficients of which a multinomial logit without priors knows nothing."""
    shifts, varying = model.mixing.shifts, model.mixing.varying
    effects = () if shifts is None else shifts.effects
    deviations = () if varying is None else varying.deviations
    return (*effects, *deviations, *model.regularised)


def held_in_logit(model: MixedLogitModel) -> tuple[tuple[int, float], ...]:
    """Positions and values of what a multinomial logit does not estimate: deviations between situations are zero."""
    varying = model.mixing.varying
    return model.space.held if varying is None else (*model.space.held, *((place, 0.0) for place in varying.deviations))


def start_population(model: MixedLogitModel, logit: MultinomialLogit) -> PopulationParameters:
    """Initial population parameters: the logit's coefficients as means, half their size as sds.

    Coefficients of sign-restricted families start at a tenth of a natural unit if the logit's sign is wrong.
    """
    n_fixed = model.space.n_fixed
    unit = model.attribute_scale
    fixed, mean = logit.coefficients[:n_fixed].clone(), logit.coefficients[n_fixed:]
    location = mean.clone()
    scale = 0.5 * torch.maximum(mean.abs(), 1.0 / unit[n_fixed:])
    for i, family in enumerate(model.mixing.families):
        smallest = 0.1 / unit[n_fixed + i]
        if family.units == "log":
            location[i], scale[i] = (family.sign * mean[i]).clamp(min=smallest).log(), 0.5
        elif family.units == "none":
            location[i], scale[i] = 0.0, 1.0
        elif family.sign > 0:
            location[i] = mean[i].clamp(min=smallest)
    if model.mixing.varying is not None:
        # Zero is a saddle.
        for place, varying in zip(model.mixing.varying.deviations, model.mixing.varying.coefficients, strict=True):
            fixed[place] = 0.5 * torch.maximum(logit.coefficients[varying].abs(), 1.0 / unit[varying])
    _, held = model.space.insert_held(torch.cat([fixed, location])[model.space.means])
    return PopulationParameters(fixed, held, torch.diag(scale))


def refuse_held(model: MixedLogitModel, engine: str) -> None:
    """Check that all coefficients are estimated, for an engine that holds none.

    Raises
    ------
    SpecificationError
        If some are held at values.
    """
    if model.has_classes:
        raise SpecificationError(f"mixing=Mixture(...) needs method='vi', 'msle' or 'mcmc'; {engine} knows no classes.")
    if model.space.held:
        names = (*model.space.fixed, *model.space.random)
        raise SpecificationError(
            f"{[names[place] for place, _ in model.space.held]} are held at values (by held or nests). That needs "
            f"method='vi', 'msle' or 'mcmc'; {engine} estimates all coefficients."
        )


def refuse_within(model: MixedLogitModel, engine: str) -> None:
    """Check that tastes do not vary between situations, for an engine that knows no nodes of these.

    Raises
    ------
    SpecificationError
        If some do.
    """
    if model.mixing.varying is not None:
        raise SpecificationError(
            f"within=... needs method='vi', 'msle' or 'mcmc'; {engine} knows no tastes that vary between situations."
        )


def refuse_wtp_space(model: MixedLogitModel, engine: str) -> None:
    """Check that a model is in preference space, for an engine that knows no other.

    Raises
    ------
    SpecificationError
        If it is in willingness-to-pay space.
    """
    if model.mixing.scale_position is not None:
        raise SpecificationError(
            f"willingness-to-pay space (scale=...) needs method='vi', 'mcmc' or 'msle'; {engine} estimates "
            "coefficients in utils."
        )
