"""Answers of a fitted model: tastes of the population and of people, willingness to pay, probabilities and shares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from mxlogit.errors import check_option
from mxlogit.fit import Fit
from mxlogit.reading import read_for_prediction, read_like_fit
from mxlogit.request import Fitted, label_keys
from mxlogit.results import frames, prediction, predictive, willingness_to_pay
from mxlogit.results.individual_coefficients import Group, individual_frame
from mxlogit.spec import Columns


class Answers(BaseEstimator):  # type: ignore[misc]
    """Methods of a fitted estimator that read its result and change nothing."""

    result_: Fit
    decision_maker: str
    situation: str
    alternative: str

    @abstractmethod
    def _state(self) -> Fitted:
        """The fitted model and data; raises NotFittedError before a fit."""

    @abstractmethod
    def _columns(self) -> Columns:
        """Names of the columns of long frames."""

    def taste_distribution(self) -> pd.DataFrame:
        """Mean and standard deviation of the transformed tastes in the population, with posterior sds."""
        return frames.taste_frame(self._state().model, self.result_)

    def posterior_samples(self, n: int | None = None) -> pd.DataFrame:
        """Posterior samples of the population parameters, one row per sample and one column per label."""
        self._state()
        return frames.samples_frame(self.result_, n)

    def wtp(
        self,
        attribute: str,
        cost: str,
        people: Any = None,
        *,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        interval: float = 0.95,
    ) -> pd.DataFrame:
        """Willingness to pay for one more unit of an attribute, in units of the cost.

        It is minus the ratio of the two coefficients: positive if people pay to have more of the attribute.

        Parameters
        ----------
        attribute, cost : str
            Coefficients, fixed or random. In willingness-to-pay space the cost is the scale.
        people : None, "fit", long frame or ChoiceData
            None for the distribution in the population; "fit" for each decision maker of the fit, a frame for others,
            given their choices.
        quantiles : sequence of float
            Probabilities of the quantiles in the population.
        interval : float
            Probability of the intervals ``lower`` to ``upper``, of the posterior, or of the sampling distribution after
            maximum likelihood.

        Returns
        -------
        pandas.DataFrame
            Columns: ``estimate`` (the posterior median; the value at ``coef_`` after maximum likelihood), ``lower``,
            ``upper``. Index: ``statistic`` ("mean" where it exists, quantiles such as "25 %", "share below zero"), or
            the decision makers, with the mean of the ratio given their choices, or its median where there is no mean.
            ``attrs["verdict"]``: whether the mean exists, and why.

        Raises
        ------
        SpecificationError
            If a label is no coefficient, the cost's is void or not the scale, or nobody differs where people are asked.

        References
        ----------
        Daly, Hess and Train (2012), Transportation 39, doi 10.1007/s11116-011-9331-3.
        """
        fitted = self._state()
        ratio = willingness_to_pay.Ratio.of(fitted.model, self.result_, attribute, cost)
        if people is None:
            return willingness_to_pay.population_frame(
                fitted.model, self.result_, ratio, fitted.seed, quantiles, interval
            )
        if isinstance(people, str):
            check_option("people", people, ["fit"])
        labels, group = self._group(None if isinstance(people, str) else people)
        return willingness_to_pay.people_frame(fitted.model, self.result_, ratio, group, labels, interval)

    def _group(self, X: Any) -> tuple[np.ndarray, Group]:
        """Labels and choices of the people of a frame, by default of the fit."""
        fitted = self._state()
        if X is None:
            return fitted.decision_makers, fitted.fitted_people(fitted.decision_makers)
        data = read_like_fit(X, replace(self._columns(), weights=None), fitted)
        return data.decision_makers, fitted.people_of(data)

    def individual_coefficients(self, X: Any = None, statistic: Sequence[str | float] = ("mean", "sd")) -> pd.DataFrame:
        """Posterior tastes of decision makers given their choices.

        Parameters
        ----------
        X : long frame or ChoiceData, optional
            Choices of people, possibly not in the fit; the people of the fit by default.
        statistic : sequence
            Any of "mean", "sd", and probabilities between 0 and 1 for quantiles.

        Returns
        -------
        pandas.DataFrame
            Index: decision maker. Columns: (taste, statistic), averaged over the posterior of the population
            parameters. A person's row does not depend on the other people in X.
        """
        model = self._state().model
        labels, group = self._group(X)
        return individual_frame(model, self.result_, group, labels, statistic)

    def predict_proba(self, X: Any, tastes: str = "population") -> pd.Series:
        """Choice probabilities.

        Parameters
        ----------
        X : long frame
            Choice situations; the choice column is not needed.
        tastes : {"population", "individual"}
            Tastes of new people from the population, or posterior tastes of decision makers of the fit.

        Returns
        -------
        pandas.Series
            Probabilities with the index of X, summing to one within each choice situation; averaged over the posterior
            (at ``coef_`` after maximum likelihood).

        Raises
        ------
        ChoiceDataError
            If X has decision makers that are not in the fit, with ``tastes="individual"``.

        Notes
        -----
        The probabilities of a situation depend neither on the other situations in X nor on their order. Tastes of the
        population are integrated over 4,096 quasi-random points common to all situations. Compared with grids over
        tastes, the error of a probability was at most .002 with one or two random coefficients, even at posterior
        standard deviations of .5 (fewer than some twenty people); with five coefficients .007 at .15 and .016 at one;
        and at most .005 with ``tastes="individual"``, from 2,000 or more weighted draws per person (states of chains
        after MCMC; the draws of the fit after `MSLE`).
        """
        check_option("tastes", tastes, ["population", "individual"])
        rows = read_for_prediction(X, self._columns(), self._state())
        values = prediction.row_values(rows, self._state().probabilities(self.result_, rows.data, tastes))
        return pd.Series(values, index=rows.index, name="probability")

    def predict(self, X: Any, tastes: str = "population") -> pd.Series:
        """Most likely alternative of every choice situation.

        Returns
        -------
        pandas.Series
            Labels of the alternatives; index: (decision maker, situation).
        """
        rows = read_for_prediction(X, self._columns(), self._state())
        names = (self.decision_maker, self.situation, self.alternative)
        return prediction.most_likely(rows, self._state().probabilities(self.result_, rows.data, tastes), names)

    def shares(self, X: Any, tastes: str = "population") -> pd.Series:
        """Predicted share of every alternative: mean probability over choice situations.

        It is weighted if X has the weights column of the fit.
        """
        rows = read_for_prediction(X, self._columns(), self._state(), weigh=True)
        probabilities = self._state().probabilities(self.result_, rows.data, tastes)
        return prediction.mean_shares(rows, probabilities, self.alternative)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log likelihood per choice situation, marginal over tastes, at ``coef_``.

        Tastes are constant over the choices of a person; people are weighted as in the fit.
        """
        fitted = self._state()
        data = read_like_fit(X, self._columns(), fitted, y=y, weights=sample_weight)
        panel, keys = fitted.difference(data), label_keys(data.decision_makers)
        return prediction.mean_log_likelihood(fitted.model, self.result_, panel, keys, fitted.seed)

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
