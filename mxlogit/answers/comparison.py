"""Criteria by which models of the same people are compared."""

from __future__ import annotations

from typing import Any

from mxlogit.answers.state import FittedModel
from mxlogit.results import predictive


class Criteria(FittedModel):
    """Predictive criteria of a fitted model."""

    def loo(self) -> predictive.PredictiveDensity:
        """Expected log predictive density of new decision makers, by leave-one-person-out (PSIS-LOO).

        It uses the marginal likelihood of whole decision makers, and serves to compare models of the same people.

        Raises
        ------
        SpecificationError
            If the fit has no posterior samples.
        """
        return self._predictive(predictive.leave_one_out)

    def waic(self) -> predictive.PredictiveDensity:
        """Expected log predictive density of new decision makers, by the widely applicable information criterion."""
        return self._predictive(predictive.widely_applicable)

    def _predictive(self, criterion: Any) -> predictive.PredictiveDensity:
        fitted = self._state()
        densities = predictive.log_densities(fitted.model, self.result_, fitted.panel, fitted.seed)
        result: predictive.PredictiveDensity = criterion(densities, fitted.panel.weights, fitted.decision_makers)
        return result
