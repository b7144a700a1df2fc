"""Other packages wrapped as engines, for evaluation by the same functions."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mxlogit.diagnostics.record import Diagnostics
from mxlogit.draws.simulation import PersonDraws
from mxlogit.errors import MissingExtraError, SpecificationError
from mxlogit.execution.people import People
from mxlogit.fit import Fit, Samples, Status
from mxlogit.inference.method import Callback
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tastes import ConditionalTastes
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import ParameterSpace

# Mixing distributions of this package that xlogit supports, and their names there.
_FAMILIES = {"normal": "n", "lognormal": "ln"}
# Importance draws per person for the log likelihood at the estimates.
_EXACT_DRAWS = 256
# Draws from the asymptotic distribution of the estimates.
_SAMPLES = 4_000


def has_xlogit() -> bool:
    """Return whether xlogit is installed."""
    return find_spec("xlogit") is not None


@dataclass(frozen=True)
class Xlogit:
    """Maximum simulated likelihood by xlogit (Arteaga et al. 2022, Journal of Choice Modelling 42).

    Correlated tastes are not supported: all correlations are zero. Log likelihood, tastes and predictions are computed
    by this package at the estimates.

    Attributes
    ----------
    n_draws : int
        Number of Halton draws per person.
    """

    n_draws: int = 500

    def run(self, model: MixedLogitModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to the choices of ``people`` (parameters as in `VI.run`); priors are not used.

        Raises
        ------
        MissingExtraError
            If xlogit is not installed.
        SpecificationError
            If a taste is neither normal nor lognormal.
        """
        if not has_xlogit():
            raise MissingExtraError("method 'xlogit' needs the package xlogit: pip install xlogit.")
        from xlogit import MixedLogit

        names = [family.name for family in model.mixing.families]
        others = sorted(set(names) - set(_FAMILIES))
        if others or model.mixing.scale_position is not None:
            raise SpecificationError(
                "xlogit supports normal and lognormal coefficients in preference space only; the model "
                + (f"has {others}." if others else "is in willingness-to-pay space.")
            )
        seed = int(torch.randint(2**31, (1,), generator=generator))
        panel = people.require_single_process().by_appearance()
        space, begin = model.space, time.perf_counter()
        callback(f"xlogit: {self.n_draws} draws")
        peer = MixedLogit()
        random = dict(zip(space.random, (_FAMILIES[name] for name in names), strict=True))
        # xlogit seeds NumPy's global generator, whose state is restored.
        state = np.random.get_state()
        try:
            peer.fit(
                **long_arrays(panel),
                varnames=[*space.fixed, *space.random],
                randvars=random,
                n_draws=self.n_draws,
                random_state=seed,
                verbose=0,
            )
        finally:
            np.random.set_state(state)
        seconds = time.perf_counter() - begin
        return _package(peer, model, panel, seconds, seed, self.n_draws)


def long_arrays(panels: Panels) -> dict[str, Any]:
    """Convert panels to long arrays of differences to the chosen alternative, which comes first with zeros.

    Situations with a single available alternative are uninformative and omitted.
    """
    panel = panels.dense()
    n, r, k = panel.values.shape
    ((_, others),) = panel.sections
    values, available = panel.values.view(-1, others, k), ~panel.unavailable_rows().view(-1, others)
    kept = available.any(-1)
    values, available = values[kept], available[kept]
    count = len(values)
    person = torch.arange(n).repeat_interleave(r // others)[kept]
    one = torch.ones(count, 1)
    return {
        "X": torch.cat([torch.zeros(count, 1, k), values.cpu()], 1).flatten(0, 1).double().numpy(),
        "y": np.tile(np.arange(others + 1) == 0, count).astype(int),
        "alts": np.tile(np.arange(others + 1), count),
        "ids": np.repeat(np.arange(count), others + 1),
        "panels": np.repeat(person.numpy(), others + 1),
        "avail": torch.cat([one, available.cpu().float()], 1).flatten().numpy(),
        "weights": np.repeat(panel.weights.cpu()[person].double().numpy(), others + 1),
    }


def _package(peer: Any, model: MixedLogitModel, panel: Panels, seconds: float, seed: int, n_draws: int) -> Fit:
    """Convert estimates and their covariance to a `Fit` of the model."""
    space = model.space
    places = {str(name): place for place, name in enumerate(peer.coeff_names)}
    order = [places[name] for name in (*space.fixed, *space.random, *(f"sd.{name}" for name in space.random))]
    found = torch.from_numpy(np.asarray(peer.coeff_, dtype=float))[order]
    fixed, location, scale = found.split([space.n_fixed, space.n_random, space.n_random])
    factors = [torch.eye(len(block), dtype=torch.float64) for block in space.correlated_blocks]
    center = space.assemble(fixed, location, scale.abs(), factors)
    covariance = torch.full((space.size, space.size), torch.nan, dtype=torch.float64)
    known = torch.from_numpy(np.asarray(peer.covariance, dtype=float))[order][:, order]
    covariance[: len(order), : len(order)] = known
    people = People.gather(panel)
    exact = MarginalLikelihood(people, space, model.mixing, seed).value_pass(
        center, IntegrationSettings(_EXACT_DRAWS, 8, stream=7, newton_steps=30)
    )
    status = Status.CONVERGED if peer.convergence else Status.STALLED
    diagnostics = Diagnostics(
        log_likelihood=exact.log_likelihood,
        log_likelihood_error=exact.variance**0.5,
        simulated_log_likelihood=float(peer.loglikelihood),
        seconds=seconds,
    )
    draws = PersonDraws("halton", n_draws, space.n_random, seed)
    tastes = ConditionalTastes(model, draws, torch.ones(space.n_random, dtype=torch.float64))
    samples = _sampling_distribution(space, found, known, seed)
    return Fit(samples, center, status, tastes, diagnostics, covariance=covariance)


def _sampling_distribution(space: ParameterSpace, found: Tensor, covariance: Tensor, seed: int) -> Samples:
    """Draw from the asymptotic normal distribution of the estimates; correlations are zero."""
    rng = np.random.default_rng(seed)
    drawn = torch.from_numpy(rng.multivariate_normal(found.numpy(), covariance.numpy(), _SAMPLES))
    drawn[:, -space.n_random :] = drawn[:, -space.n_random :].abs().clamp(min=1e-12)
    reported = torch.cat([drawn, drawn.new_zeros(len(drawn), len(space.pairs))], 1)
    return Samples(
        space.unconstrain(space.from_report(reported)), reported, tuple(space.labels), kind="sampling distribution"
    )
