"""Maximum simulated likelihood: the classical baseline on the same kernel, data and results as the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.base import BaseEstimator
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.draws import make_generator
from mxlogit.errors import SpecificationError, check_at_least, check_option
from mxlogit.fit import Fit, HistoryRow, Status
from mxlogit.inference.assess import evaluate_center, judge
from mxlogit.inference.method import Callback
from mxlogit.inference.start import MultinomialLogit, fit_multinomial_logit, start_population
from mxlogit.likelihood import PanelDifferences
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.parameters import Population
from mxlogit.samples import Samples
from mxlogit.sequences import SCHEMES, draw_normals
from mxlogit.simulated import SimulatedLikelihood
from mxlogit.tastes import SimulatedTastes

_SCIPY = {"bfgs": "BFGS", "l-bfgs": "L-BFGS-B"}
_COVARIANCES = ("robust", "hessian", "bhhh")
# Size of central differences of the score, in standard errors of the multinomial logit.
_DIFFERENCE = 1e-3
# Draws of the importance-sampled log likelihood at the estimate.
_EXACT_DRAWS = 256


class MSLE(BaseEstimator):  # type: ignore[misc]
    r"""Maximum simulated likelihood.

    Parameters
    ----------
    n_draws : int
        Draws per decision maker.
    draws : {"halton", "scrambled_halton", "sobol", "mlhs", "pseudo"}
        "halton" follows mlogit and xlogit (see `mxlogit.sequences.draw_normals`).
    optimizer : {"bfgs", "l-bfgs"}
        Of scipy, with analytic gradients, in units of the multinomial logit's standard errors.
    covariance : {"robust", "hessian", "bhhh"}
        Of the estimates: sandwich over decision makers, inverse Hessian, or inverse sum over decision makers of
        outer products of scores.
    n_starts : int
        1: the optimum reached from positive standard deviations. More: also from the most promising flips of
        their signs, since the simulated likelihood is not symmetric in them.
    antithetic : bool
        Second half of each person's draws is minus the first.
    max_iterations : int
    tolerance : float
        Largest scaled gradient at the optimum.
    n_samples : int
        Draws from the asymptotic normal distribution kept for intervals of functions (Krinsky and Robb 1986,
        Review of Economics and Statistics 68).

    References
    ----------
    Train (2009), Discrete Choice Methods with Simulation, chapters 8 to 10.
    """

    def __init__(
        self,
        *,
        n_draws: int = 500,
        draws: str = "halton",
        optimizer: str = "bfgs",
        covariance: str = "robust",
        n_starts: int = 3,
        antithetic: bool = False,
        max_iterations: int = 300,
        tolerance: float = 1e-3,
        n_samples: int = 4000,
    ) -> None:
        self.n_draws = n_draws
        self.draws = draws
        self.optimizer = optimizer
        self.covariance = covariance
        self.n_starts = n_starts
        self.antithetic = antithetic
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.n_samples = n_samples

    def check(self) -> None:
        """Raise unless the settings make sense.

        Raises
        ------
        SpecificationError
            Naming the setting, what is allowed and what came.
        """
        for name, lowest in (("n_draws", 1), ("n_starts", 1), ("max_iterations", 1), ("n_samples", 2)):
            check_at_least(f"MSLE({name}=...)", getattr(self, name), lowest)
        check_at_least("MSLE(tolerance=...)", self.tolerance, 1e-12)
        check_option("MSLE(draws=...)", self.draws, SCHEMES)
        check_option("MSLE(optimizer=...)", self.optimizer, _SCIPY)
        check_option("MSLE(covariance=...)", self.covariance, _COVARIANCES)
        if self.antithetic and self.n_draws % 2:
            raise SpecificationError("MSLE(antithetic=True) needs an even n_draws.")

    def run(self, model: PanelModel, panel: PanelDifferences, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to ``panel`` (parameters as in `VI.run`); priors are not used.

        Returns
        -------
        Fit
            Its samples are draws from the asymptotic sampling distribution.
        """
        self.check()
        begin = time.perf_counter()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        logit = fit_multinomial_logit(panel, torch.full_like(model.prior.deviation, math.inf))
        simulated = SimulatedLikelihood(model, panel, self._draw(model, panel, self.n_draws, seed))
        search = _Search(self, simulated, _scales(model, logit), callback, begin)
        start = simulated.coordinates(start_population(model, logit))
        optimum = search.run(start)
        fit = self._package(model, panel, simulated, optimum, search, seed)
        fit.diagnostics["seconds"] = time.perf_counter() - begin
        return judge(fit, model, panel, logit)

    def _draw(self, model: PanelModel, panel: PanelDifferences, n_draws: int, seed: int) -> Tensor:
        shape = (len(panel), n_draws, model.space.n_random)
        return draw_normals(self.draws, *shape, seed, antithetic=self.antithetic).to(panel.values)

    def _package(
        self,
        model: PanelModel,
        panel: PanelDifferences,
        simulated: SimulatedLikelihood,
        optimum: _Optimum,
        search: _Search,
        seed: int,
    ) -> Fit:
        hessian = simulated.hessian(optimum.vector, _DIFFERENCE * search.scales)
        spread = _Spread(hessian, simulated.evaluate(optimum.vector).scores, simulated.weights, search.scales)
        covariance = spread.covariance(self.covariance)
        center = positive_diagonal(simulated.population(optimum.vector))
        samples = _sampling_distribution(simulated, optimum.vector, covariance, self.n_samples, seed)
        jacobian = _report_jacobian(simulated, optimum.vector, 1e-3 * _DIFFERENCE * search.scales)
        marginal = MarginalLikelihood(panel, model.space, model.mixing, seed)
        marginal.sweep(center, Sweep(16, 8, 6, 30))
        diagnostics = evaluate_center(marginal, center, _EXACT_DRAWS, 8)
        diagnostics.update(_criteria(optimum.value, model.space.size, panel))
        diagnostics.update(self._stability(model, panel, optimum, spread, seed))
        diagnostics.update(
            simulated_log_likelihood=optimum.value,
            start=optimum.start,
            gradient_norm=optimum.gradient_norm,
            pareto_k=math.nan,
            passes=simulated.evaluations,
            unidentified=[model.space.labels[i] for i in spread.flat],
        )
        tastes = SimulatedTastes(model, self.draws, self.n_draws, seed, antithetic=self.antithetic)
        return Fit(
            samples,
            center,
            optimum.status,
            search.history,
            tastes,
            diagnostics,
            warnings=spread.sentences(model.space.labels),
            covariance=jacobian @ covariance @ jacobian.T,
        )

    def _stability(
        self, model: PanelModel, panel: PanelDifferences, optimum: _Optimum, spread: _Spread, seed: int
    ) -> dict[str, object]:
        """How far twice the draws would move the estimates, in standard errors, and change the likelihood."""
        doubled = SimulatedLikelihood(model, panel, self._draw(model, panel, 2 * self.n_draws, seed + 1))
        value, gradient = doubled.value_and_gradient(optimum.vector)
        inverse = spread.covariance("hessian")
        move = (inverse @ gradient) / inverse.diagonal().sqrt()
        return {
            "simulated_log_likelihood_twice_the_draws": value,
            "redraw_shift": float(move.abs().max()) if len(move) else 0.0,
        }


@dataclass(frozen=True)
class _Optimum:
    """An optimum of the simulated likelihood, in its coordinates."""

    vector: Tensor
    value: float
    gradient_norm: float
    status: Status
    start: str


class _Search:
    """scipy's optimisers over scaled coordinates, from one start or several."""

    def __init__(
        self, settings: MSLE, simulated: SimulatedLikelihood, scales: Tensor, callback: Callback, begin: float
    ) -> None:
        self.settings, self.simulated, self.scales, self.callback = settings, simulated, scales, callback
        self.begin = begin
        self.history: list[HistoryRow] = []

    def run(self, start: Tensor) -> _Optimum:
        best = self._maximise(start, "positive standard deviations")
        for name, vector in self._flips(best.vector)[: self.settings.n_starts - 1]:
            other = self._maximise(vector, name)
            if other.value > best.value + 1e-6:
                best = other
        return best

    def _flips(self, vector: Tensor) -> list[tuple[str, Tensor]]:
        """Points with one column of L mirrored, the most likely first."""
        space = self.simulated.model.space
        offset = space.n_fixed + space.n_random
        columns = torch.tensor(space.triangle[1])
        flips = []
        for k, name in enumerate(space.random):
            mirrored = vector.clone()
            mirrored[offset:][columns == k] *= -1.0
            value, _ = self.simulated.value_and_gradient(mirrored)
            flips.append((value, f"sign of {name!r} flipped", mirrored))
        flips.sort(key=lambda flip: -flip[0])
        return [(name, mirrored) for _, name, mirrored in flips]

    def _maximise(self, start: Tensor, name: str) -> _Optimum:
        options: dict[str, object] = {"gtol": self.settings.tolerance, "maxiter": self.settings.max_iterations}
        if self.settings.optimizer == "bfgs" and len(start):
            options["hess_inv0"] = self._first_inverse_hessian(start)
        result = minimize(
            self._negative(name),
            (start / self.scales).numpy(),
            jac=True,
            method=_SCIPY[self.settings.optimizer],
            options=options,
        )
        vector = torch.from_numpy(result.x) * self.scales
        norm = float(np.abs(result.jac).max()) if len(result.x) else 0.0
        # scipy calls it a failure when rounding stops the line search next to the optimum.
        converged = norm < 10.0 * self.settings.tolerance
        status = Status.CONVERGED if converged else Status.ITERATIONS if result.status == 1 else Status.STALLED
        return _Optimum(vector, -float(result.fun), norm, status, name)

    def _first_inverse_hessian(self, start: Tensor) -> np.ndarray:
        """Inverse of the people's outer products of scores at the start (Berndt et al. 1974), made definite."""
        scores = self.simulated.evaluate(start).scores * self.scales
        outer = (scores * self.simulated.weights[:, None]).T @ scores
        ridge = 1e-3 * outer.diagonal().mean() * torch.eye(len(outer), dtype=outer.dtype)
        inverse = torch.linalg.inv(outer + ridge).numpy()
        symmetric: np.ndarray = 0.5 * (inverse + inverse.T)
        return symmetric

    def _negative(self, name: str) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        def loss(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.simulated.value_and_gradient(torch.from_numpy(scaled) * self.scales)
            row = HistoryRow(
                name, value, math.nan, self.simulated.evaluations, time.perf_counter() - self.begin, accepted=True
            )
            self.history.append(row)
            self.callback(f"{name}: {self.simulated.evaluations} evaluations, log likelihood {value:.3f}")
            return -value, -(gradient * self.scales).numpy()

        return loss


def _scales(model: PanelModel, logit: MultinomialLogit) -> Tensor:
    """Natural step of every coordinate: the logit's standard errors, those of a coefficient for its row of L."""
    diagonal = logit.information.diagonal().clamp(min=1e-300).rsqrt()
    sizes = torch.minimum(diagonal, 1.0 / model.attribute_scale)
    rows, _ = model.space.triangle
    random = torch.ones(model.space.n_random, dtype=torch.float64)
    for i, family in enumerate(model.mixing.families):
        random[i] = sizes[model.space.n_fixed + i] if family.units == "linear" else 0.1
    return torch.cat([sizes[: model.space.n_fixed], random, random[rows]])


class _Spread:
    """Covariances of the estimates from the Hessian and the people's scores, in scaled coordinates."""

    def __init__(self, hessian: Tensor, scores: Tensor, weights: Tensor, scales: Tensor) -> None:
        self.scales = scales
        information = -scales[:, None] * hessian * scales
        self.scaled_scores = scores * scales
        self.weights = weights
        values, vectors = torch.linalg.eigh(information)
        largest = float(values.abs().max()) if len(values) else 1.0
        good = values > 1e-9 * largest
        inverse = torch.where(good, 1.0 / torch.where(good, values, 1.0), 0.0)
        self.inverse_hessian = (vectors * inverse) @ vectors.T
        # Coordinates that lead the directions without curvature: not identified.
        self.flat = torch.nonzero((vectors[:, ~good].abs() > 0.3).any(-1))[:, 0].tolist()

    def covariance(self, kind: str) -> Tensor:
        """Covariance matrix (D, D) of the coordinates."""
        weighted = self.weights[:, None] * self.scaled_scores
        if kind == "hessian":
            scaled = self.inverse_hessian
        elif kind == "bhhh":
            scaled = torch.linalg.pinv(weighted.T @ self.scaled_scores, hermitian=True)
        else:
            scaled = self.inverse_hessian @ (weighted.T @ weighted) @ self.inverse_hessian
        return self.scales[:, None] * scaled * self.scales

    def sentences(self, labels: list[str]) -> list[str]:
        """Say which parameters the simulated likelihood does not bound."""
        if not self.flat:
            return []
        names = [labels[i] for i in self.flat if i < len(labels)]
        return [f"The Hessian is singular at the optimum: {names} are not identified; their standard errors are void."]


def positive_diagonal(population: Population) -> Population:
    """Return the same distribution with positive standard deviations: columns of L mirrored."""
    tril = population.scale_tril
    sign = torch.where(tril.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(tril)
    return Population(population.fixed, population.location, tril * sign[..., None, :])


def _sampling_distribution(
    simulated: SimulatedLikelihood, vector: Tensor, covariance: Tensor, n: int, seed: int
) -> Samples:
    """Draws from the asymptotic normal distribution of the coordinates, as population parameters."""
    values, vectors = torch.linalg.eigh(covariance)
    half = torch.randn((n + 1) // 2, len(vector), generator=make_generator(seed, 5), dtype=torch.float64)
    noise = torch.cat([half, -half])[:n] @ (vectors * values.clamp(min=0.0).sqrt()).T
    space = simulated.model.space
    population = positive_diagonal(simulated.population(vector + noise))
    unconstrained, reported = space.unconstrain(population), space.report(population)
    return Samples(unconstrained, reported, tuple(space.labels), kind="sampling distribution")


def _report_jacobian(simulated: SimulatedLikelihood, vector: Tensor, steps: Tensor) -> Tensor:
    """D (reported parameters) / d (coordinates), (D, D), for the delta method."""
    space = simulated.model.space

    def report(point: Tensor) -> Tensor:
        return space.report(simulated.population(point))

    columns = [
        (report(vector + step) - report(vector - step)) / (2.0 * steps[i]) for i, step in enumerate(torch.diag(steps))
    ]
    return torch.stack(columns, -1)


def _criteria(value: float, size: int, panel: PanelDifferences) -> dict[str, object]:
    """Information criteria and McFadden's rho-squared against equal probabilities."""
    opened = panel.values.new_ones(panel.values.shape[:2]) if panel.closed is None else (~panel.closed).to(panel.values)
    alternatives = 1.0 + panel.by_situation(opened).double().sum(-1)
    null = -float(alternatives.log().sum(-1) @ panel.weights.double())
    situations = float(panel.n_situations.double() @ panel.weights.double())
    return {
        "aic": 2.0 * size - 2.0 * value,
        "bic": math.log(situations) * size - 2.0 * value,
        "null_log_likelihood": null,
        "rho_squared": 1.0 - value / null,
        "n_parameters": size,
    }
