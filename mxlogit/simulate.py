"""Simulation of choices for any specification, and of the data sets of the published simulation study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mxlogit.choices import ChoiceData
from mxlogit.errors import SpecificationError, check_at_least
from mxlogit.model.mixing import Mixing
from mxlogit.spec import CONSTANT_PREFIX, make_specification


@dataclass(frozen=True)
class Truth:
    """True parameters and tastes of simulated choices.

    Attributes
    ----------
    coef : pandas.Series
        Parameters with labels as in ``MixedLogit.coef_``: fixed coefficients, locations, ``sd.`` and ``cor.`` of the
        latents.
    tastes : pandas.DataFrame
        Random coefficients of each decision maker; index: decision maker.
    """

    coef: pd.Series
    tastes: pd.DataFrame


def simulate_choices(
    n_decision_makers: int = 500,
    n_situations: int | tuple[int, int] = 10,
    n_alternatives: int = 4,
    *,
    fixed: Mapping[str, float] | None = None,
    random: Mapping[str, Sequence[object]] | None = None,
    correlation: float | np.ndarray | None = None,
    constants: Sequence[float] | None = None,
    unavailable: float = 0.0,
    scales: Mapping[str, float] | None = None,
    mean_shifters: Mapping[str, Mapping[str, float]] | None = None,
    within: Mapping[str, float] | None = None,
    random_state: int = 0,
) -> tuple[pd.DataFrame, Truth]:
    """Simulate a long frame of choices from a mixed logit.

    Parameters
    ----------
    n_decision_makers, n_alternatives : int
        Numbers of decision makers, and of alternatives per situation.
    n_situations : int or (int, int)
        Number of choice situations per person; with a pair, uniform between the two.
    fixed : mapping column -> coefficient
        Fixed coefficients.
    random : mapping column -> (location, sd) or (location, sd, distribution)
        Means and standard deviations of the latent normals, and mixing distributions (normal by default).
    correlation : float or array (k, k), optional
        Common correlation or correlation matrix of the latent normals; zero by default.
    constants : sequence of float, optional
        Utility of alternatives 2, 3, ... relative to the first (alternatives are labelled "a1", "a2", ...).
    unavailable : float
        Probability that an alternative other than the first two is missing from a situation.
    scales : mapping column -> float
        Standard deviations of the attributes; one by default. Coefficients refer to the scaled attributes.
    mean_shifters : mapping column -> mapping covariate -> effect
        Effects of covariates of the decision makers (standard normal) on fixed coefficients and on the means of the
        latent normals of random ones.
    within : mapping column -> standard deviation
        Standard deviations, between the choice situations of a person, of fixed coefficients and normal tastes.
    random_state : int
        Seed.

    Returns
    -------
    tuple of (pandas.DataFrame, Truth)
        Long frame with columns ``id situation alternative choice``, the attributes (normal, independent) and the
        covariates, and the true parameters; tastes include what covariates add.

    Raises
    ------
    SpecificationError
        If there is no coefficient, a distribution is unknown, or the correlation matrix is not positive definite.
    """
    fixed, random = dict(fixed or {}), dict(random or {})
    families = {name: str(value[2]) if len(value) > 2 else "normal" for name, value in random.items()}
    effects = _check_effects(mean_shifters, [*fixed, *random])
    made = make_specification(
        fixed=list(fixed),
        random=families,
        constants=constants is not None,
        mean_shifters={name: list(covariates) for name, covariates in effects.items()},
        within=dict.fromkeys(within or {}, "normal"),
    )
    check_at_least("n_decision_makers", n_decision_makers, 1)
    check_at_least("n_alternatives", n_alternatives, 2)
    if constants is not None and len(constants) != n_alternatives - 1:
        raise SpecificationError(f"constants must have length {n_alternatives - 1}; got {len(constants)}.")
    rng = np.random.default_rng(random_state)
    location = np.array([float(value[0]) for value in random.values()])  # type: ignore[arg-type]
    scale = np.array([float(value[1]) for value in random.values()])  # type: ignore[arg-type]
    matrix = _correlation_matrix(correlation, len(random))
    covariates = _draw_covariates(made.covariates, n_decision_makers, random_state)
    on_latents = [made.shifters[i] for i in made.latent_effects]
    locations = np.tile(location, (n_decision_makers, 1))
    for column, covariate in on_latents:
        locations[:, list(random).index(column)] += effects[column][covariate] * covariates[covariate].to_numpy()
    tastes = _draw_tastes(rng, locations, scale, matrix, list(families.values()))
    low, high = (n_situations, n_situations) if isinstance(n_situations, int) else n_situations
    counts = rng.integers(low, high + 1, n_decision_makers)
    frame = _draw_attributes(rng, counts, n_alternatives, [*fixed, *random], scales or {})
    person, names = frame["id"].to_numpy() - 1, [*fixed, *random]
    coefficients = np.concatenate([np.tile(list(fixed.values()), (n_decision_makers, 1)), tastes], 1)
    for column, covariate in (pair for pair in made.shifters if pair not in on_latents):
        coefficients[:, names.index(column)] += effects[column][covariate] * covariates[covariate].to_numpy()
    tastes = coefficients[:, len(fixed) :]
    utility = (frame[names].to_numpy() * coefficients[person]).sum(1)
    situation = np.arange(len(frame)) // n_alternatives
    for column, wander in zip(made.within, _draw_deviations(within, len(frame), random_state), strict=True):
        utility += wander[situation] * frame[column].to_numpy()
    if constants is not None:
        utility += np.concatenate([[0.0], constants])[np.tile(np.arange(n_alternatives), counts.sum())]
    keep = (np.tile(np.arange(n_alternatives), counts.sum()) < 2) | (rng.random(len(frame)) >= unavailable)
    noisy = np.where(keep, utility + rng.gumbel(size=len(frame)), -np.inf).reshape(-1, n_alternatives)
    chosen = noisy.argmax(1)[:, None] == np.arange(n_alternatives)
    frame.insert(3, "choice", chosen.ravel())
    frame[list(made.covariates)] = covariates.to_numpy()[person]
    moved = {label: effects[pair[0]][pair[1]] for label, pair in zip(made.products, made.shifters, strict=True)}
    moved |= {label: float((within or {})[column]) for column, label in made.copies}
    known = {**fixed, **moved, **{f"{CONSTANT_PREFIX}a{j}": value for j, value in enumerate(constants or (), start=2)}}
    truth = _make_truth(known, list(random), location, scale, None if correlation is None else matrix, tastes)
    return frame[keep].reset_index(drop=True), truth


def _check_effects(
    asked: Mapping[str, Mapping[str, float]] | None, attributes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Effects by column and covariate."""
    effects = dict(asked or {})
    wrong = [name for name in effects if name not in attributes or not isinstance(effects[name], Mapping)]
    if wrong:
        raise SpecificationError(
            f"mean_shifters must map columns of fixed or random to effects by covariate, such as "
            f"{{'price': {{'income': 0.5}}}}; not so: {wrong}."
        )
    made = {*attributes, "id", "situation", "alternative", "choice"}
    taken = sorted({covariate for covariates in effects.values() for covariate in covariates} & made)
    if taken:
        raise SpecificationError(f"mean_shifters: covariates {taken} would overwrite columns of that name.")
    return {name: dict(covariates) for name, covariates in effects.items()}


def _draw_covariates(names: Sequence[str], n: int, random_state: int) -> pd.DataFrame:
    """Standard normal covariates (n, c), of a random stream of their own."""
    rng = np.random.default_rng([random_state, 1])
    return pd.DataFrame({name: rng.standard_normal(n) for name in names}, index=range(n))


def _draw_deviations(within: Mapping[str, float] | None, n: int, random_state: int) -> np.ndarray:
    """Normal deviations (columns, n) of choice situations, of a random stream of their own."""
    sizes = np.array(list((within or {}).values()), dtype=np.float64)
    return sizes[:, None] * np.random.default_rng([random_state, 2]).standard_normal((len(sizes), n))


def _correlation_matrix(correlation: float | np.ndarray | None, k: int) -> np.ndarray:
    matrix = np.eye(k)
    if correlation is not None:
        matrix = np.asarray(correlation, dtype=float)
        if matrix.ndim == 0:
            matrix = np.full((k, k), float(matrix))
            np.fill_diagonal(matrix, 1.0)
    if matrix.shape != (k, k) or (k and np.linalg.eigvalsh(matrix).min() <= 0):
        raise SpecificationError(f"correlation must be a number or a positive definite ({k}, {k}) matrix.")
    return matrix


def _draw_tastes(
    rng: np.random.Generator,
    location: np.ndarray,
    scale: np.ndarray,
    correlation: np.ndarray,
    families: list[str],
) -> np.ndarray:
    if not families:
        return np.zeros((len(location), 0))
    latent = location + scale * (rng.standard_normal(location.shape) @ np.linalg.cholesky(correlation).T)
    arguments = (torch.from_numpy(x) for x in np.broadcast_arrays(latent, location, scale))
    return Mixing(families).tastes(*(x.clone() for x in arguments)).numpy()


def _draw_attributes(
    rng: np.random.Generator, counts: np.ndarray, n_alternatives: int, names: list[str], scales: Mapping[str, float]
) -> pd.DataFrame:
    person = np.repeat(np.arange(1, len(counts) + 1), counts * n_alternatives)
    within = np.concatenate([np.repeat(np.arange(1, c + 1), n_alternatives) for c in counts])
    labels = np.array([f"a{j}" for j in range(1, n_alternatives + 1)])
    frame = pd.DataFrame({"id": person, "situation": within, "alternative": np.tile(labels, counts.sum())})
    for name in names:
        frame[name] = scales.get(name, 1.0) * rng.standard_normal(len(frame))
    return frame


def _make_truth(
    fixed: Mapping[str, float],
    names: list[str],
    location: np.ndarray,
    scale: np.ndarray,
    correlation: np.ndarray | None,
    tastes: np.ndarray,
) -> Truth:
    """True parameters by label, and tastes (n, k); correlations only if given."""
    values = dict(fixed)
    values.update(zip(names, location, strict=True))
    values.update({f"sd.{name}": s for name, s in zip(names, scale, strict=True)})
    if correlation is not None:
        pairs = [(i, j) for j in range(len(names)) for i in range(j)]
        values.update({f"cor.{names[i]}:{names[j]}": correlation[i, j] for i, j in pairs})
    people = pd.RangeIndex(1, len(tastes) + 1, name="id")
    return Truth(pd.Series(values, dtype=float), pd.DataFrame(tastes, index=people, columns=names))


# True fixed coefficients of the published study, in utils per unit of the attributes.
FIXED = (-0.8, 0.8, 1.2)
# True means of its random coefficients.
LOCATION = (-0.8, 0.8, 1.0, -0.8, 1.5)


@dataclass(frozen=True)
class StudyData:
    """Data set of the published simulation study, with its true parameters and tastes.

    Attributes
    ----------
    data : ChoiceData
        Choices with attributes ``f1 f2 f3`` (fixed) and ``r1`` to ``r5`` (random), float32.
    fixed, location : ndarray, shape (3,) and (5,)
        True fixed coefficients, and means of the random ones.
    covariance : ndarray, shape (5, 5)
        True covariance of the random coefficients.
    tastes : ndarray, shape (n, 5)
        True random coefficients of each decision maker.
    best_share : float
        Percentage of situations in which the chosen alternative has the largest systematic utility.
    """

    data: ChoiceData
    fixed: np.ndarray
    location: np.ndarray
    covariance: np.ndarray
    tastes: np.ndarray
    best_share: float

    @property
    def truth(self) -> Truth:
        """True parameters and tastes in the form of `simulate_choices`."""
        sds = np.sqrt(np.diag(self.covariance))
        names = [f"r{i + 1}" for i in range(len(sds))]
        fixed = {f"f{i + 1}": float(value) for i, value in enumerate(self.fixed)}
        correlation = self.covariance / np.outer(sds, sds)
        return _make_truth(fixed, names, self.location, sds, correlation, self.tastes)


def simulate_published_study(n_decision_makers: int, n_situations: int, run: int) -> StudyData:
    """Regenerate a data set of the simulation study of Rodrigues (2022, arXiv 2004.05426).

    Parameters
    ----------
    n_decision_makers, n_situations : int
        Numbers of decision makers and of situations per person; the published sizes are (500, 5), (2000, 10),
        (10000, 10) and (50000, 10).
    run : int
        Seed of numpy's legacy generator: 1 to 30 in the study.

    Returns
    -------
    StudyData
    """
    n, t, j = n_decision_makers, n_situations, 5
    rng = np.random.RandomState(run)
    x_fixed, x_random = rng.rand(n * t * j, 3), rng.rand(n * t * j, 5)
    z, u = rng.randn(5, n), rng.rand(n * t * j)
    covariance = 0.8 + 0.2 * np.eye(5)
    tastes = np.array(LOCATION) + (np.linalg.cholesky(covariance) @ z).T
    utility = x_fixed @ np.array(FIXED) + (x_random * np.repeat(tastes, t * j, axis=0)).sum(1)
    utility = utility.reshape(n, t, j)
    chosen = (utility - np.log(-np.log(u)).reshape(n, t, j)).argmax(2)
    attributes = np.concatenate([x_fixed, x_random], 1).astype(np.float32).reshape(n, t, j, 8)
    data = ChoiceData.from_arrays(attributes, chosen, names=["f1", "f2", "f3", "r1", "r2", "r3", "r4", "r5"])
    best = 100.0 * float((utility.argmax(2) == chosen).mean())
    return StudyData(data, np.array(FIXED), np.array(LOCATION), covariance, tastes, best)
