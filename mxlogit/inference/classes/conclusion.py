"""Outcome of a fit of classes: samples, tastes of people, diagnostics and plain sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.diagnostics.error import ErrorEstimate
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.execution.people import People
from mxlogit.fit import Fit, Outcome, Samples, Status
from mxlogit.inference.classes.objective import ClassObjective, Likelihood
from mxlogit.inference.classes.search import Optimum
from mxlogit.inference.clock import Clock
from mxlogit.inference.msle.covariance import information_criteria
from mxlogit.inference.report import with_history
from mxlogit.inference.start import MultinomialLogit, is_separated
from mxlogit.integration.class_tastes import ClassTastes
from mxlogit.integration.mixture_tastes import MixtureTastes
from mxlogit.model.classes import ClassPopulation, ClassSpace

# Difference in nats below which another optimum counts as a description of the data that is as good.
_CLOSE = 2.0
# Members below which a class is empty.
_EMPTY = 0.5
# Effect in utils of an attribute's typical difference beyond which a coefficient counts as unbounded.
_UNBOUNDED = 12.0


@dataclass(frozen=True)
class ClassFit:
    """The end of the search for classes, where engines go separate ways.

    Attributes
    ----------
    objective : ClassObjective
        Log posterior, or log likelihood, of all people.
    optimum : Optimum
        With the classes ordered by their shares.
    people : People
    logit : MultinomialLogit
    clock : Clock
    seed : int
    """

    objective: ClassObjective
    optimum: Optimum
    people: People
    logit: MultinomialLogit
    clock: Clock
    seed: int

    @property
    def likelihood(self) -> Likelihood:
        """Likelihood of all people."""
        return self.objective.likelihood

    @property
    def space(self) -> ClassSpace:
        """Layout of the parameters."""
        return self.likelihood.space

    def conclude(
        self,
        samples: Samples,
        center: ClassPopulation,
        status: Status,
        found: Diagnostics,
        error: ErrorEstimate | None,
        warnings: list[str],
        covariance: Tensor | None = None,
        chains: Tensor | None = None,
    ) -> Fit:
        """The fit, with sentences about what is doubtful."""
        value, of_value, ess = self.likelihood.value_with_error(center)
        found = replace(
            found.join(information_criteria(value, self.space.size, self.likelihood.panel)),
            log_likelihood=value,
            log_likelihood_error=of_value,
            ess=ess if self.space.is_spread else None,
            newton_decrement=self.optimum.place.decrement(),
            start=self.optimum.sentence(),
            passes=self.clock.passes,
            seconds=self.clock.seconds(),
        )
        if error is not None:
            found = replace(found, error=error.by_group(), trusted=error.is_small, trust=error.sentence())
        warnings = [*warnings, *self._sentences(center, samples.kind == "posterior")]
        if error is not None and not error.is_small:
            warnings.append(error.sentence())
        if self.clock.was_over:
            status = Status.TIME
        elif status.converged and not self.optimum.converged:
            status = Status.STALLED
        if not status.converged:
            warnings.insert(0, status.value)
        model = self.likelihood.model
        outcome = Outcome(
            samples,
            center,
            status,
            MixtureTastes(model, self.seed) if self.space.is_spread else ClassTastes(model),
            found,
            warnings,
            covariance,
            chains,
            error=error,
        )
        return with_history(outcome, self.clock)

    def _sentences(self, center: ClassPopulation, is_posterior: bool) -> list[str]:  # noqa: FBT001
        """Sentences about doubtful classes, optima and coefficients."""
        found = [*self._about_sizes(center), *self._about_optima()]
        unbounded = self._unbounded(center)
        if unbounded:
            bound = "only the prior bounds" if is_posterior else "the likelihood may not bound"
            found.append(
                f"Within classes nearly all choices follow from {unbounded}: {bound} these coefficients. Fewer "
                "classes, or a prior, would keep them finite."
            )
        if is_separated(self.people):
            found.append("Separation (complete or in part): some coefficients predict every choice of all people.")
        return found

    def _about_sizes(self, center: ClassPopulation) -> list[str]:
        panel = self.likelihood.panel
        shares = center.mean_shares(panel.covariates, self.likelihood.weights)
        members, own = (shares * self.likelihood.weights.sum()).tolist(), self.space.width
        empty = [f"class{c + 1}" for c, n in enumerate(members) if n < _EMPTY]
        if empty:
            return [
                f"Nobody belongs to {', '.join(empty)}: logits of membership run away, and their errors mean nothing. "
                "Leave the class out."
            ]
        small = [f"class{c + 1} ({n:.1f})" for c, n in enumerate(members) if n < max(own, 5)]
        if not small:
            return []
        return [
            f"Classes with hardly more members than parameters: {', '.join(small)}. The data do not tell so many "
            "classes; take fewer."
        ]

    def _about_optima(self) -> list[str]:
        optimum = self.optimum
        if optimum.next_best < _CLOSE:
            return [
                f"Another set of classes describes the data nearly as well ({optimum.next_best:.1f} nats lower): these "
                "are not the only ones that the data allow."
            ]
        if optimum.found_by < 2 and optimum.finished > 1:
            return [
                f"Of {optimum.starts} starts only one led to the best optimum: others may be better. Another "
                "random_state tries other starts."
            ]
        return []

    def _unbounded(self, center: ClassPopulation) -> list[str]:
        """Labels of coefficients that decide choices alone."""
        parameters = center.class_tastes(self.likelihood.model.mixing)[:, 0]
        effects = (parameters * self.likelihood.model.attribute_scale).abs()
        names, found = [*self.space.fixed, *self.space.random], list[str]()
        for c, i in torch.nonzero(effects > _UNBOUNDED).tolist():
            found.append(names[i] if i < self.space.n_fixed else f"class{c + 1}.{names[i]}")
        return list(dict.fromkeys(found))
