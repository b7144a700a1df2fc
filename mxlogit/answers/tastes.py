"""Tastes of the population and of people, and what they are willing to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from mxlogit.answers.state import FittedModel
from mxlogit.errors import SpecificationError, check_option
from mxlogit.model.mean_shifters import Covariates
from mxlogit.results import frames, willingness_to_pay
from mxlogit.results.classes import class_frame, class_names, class_number, membership_frame, require_classes
from mxlogit.results.covariate_effects import effects_frame
from mxlogit.results.individual_coefficients import class_memberships, individual_frame, sampled_tastes
from mxlogit.results.person_fit import person_fit_frame


class Tastes(FittedModel):
    """Tastes of a fitted model."""

    def taste_distribution(self, covariates: Mapping[str, float] | None = None) -> pd.DataFrame:
        """Mean and standard deviation of the transformed tastes in the population, with posterior sds.

        Parameters
        ----------
        covariates : mapping of str to float, optional
            Values of the covariates that shift the means of tastes: moments are those of people who have them; by
            default of the people of the fit, whose covariates then add to the standard deviations.

        Returns
        -------
        pandas.DataFrame
            Index: random coefficients, and fixed ones that covariates shift ("fixed").
        """
        fitted = self._state()
        return frames.taste_frame(fitted.model, self.result_, fitted.people_with_covariates(covariates))

    def covariate_effects(self, interval: float = 0.95) -> pd.DataFrame:
        """Average effects of the covariates in ``mean_shifters`` on the means of coefficients, over people.

        Parameters
        ----------
        interval : float
            Probability of the intervals.

        Returns
        -------
        pandas.DataFrame
            Index: ``coefficient``, ``covariate``. Columns: ``estimate``, ``lower``, ``upper``: the average derivative
            of the mean (of the latent normal, if the distribution is not normal) by the covariate, or, of a covariate
            with values zero and one, the average difference between one and zero. Linear effects are equal for all.

        Raises
        ------
        SpecificationError
            If no covariates shift means.
        """
        fitted = self._state()
        return effects_frame(fitted.specification, fitted.model, self.result_, fitted.everybody, interval)

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
        covariates: Mapping[str, float] | None = None,
    ) -> pd.DataFrame:
        """Willingness to pay for one more unit of an attribute, in units of the cost.

        It is minus the ratio of the two coefficients: positive if people pay to have more of the attribute.

        Parameters
        ----------
        attribute, cost : str
            Coefficients, fixed or random. In willingness-to-pay space the cost is the scale.
        people : None, "fit", "class1" and so on, long frame or ChoiceData
            None for the distribution in the population, the name of a class for that of its members; "fit" for each
            decision maker of the fit, a frame for others, given their choices.
        quantiles : sequence of float
            Probabilities of the quantiles in the population.
        interval : float
            Probability of the intervals ``lower`` to ``upper``, of the posterior, or of the sampling distribution after
            maximum likelihood.
        covariates : mapping of str to float, optional
            Values of the covariates that shift the means of tastes: the distribution is that of people who have them;
            by default of the people of the fit.

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
        member_of = class_number(people, fitted.model)
        if people is not None and covariates is not None:
            raise SpecificationError("people have covariates of their own; leave out people or covariates.")
        population = fitted.people_with_covariates(covariates)
        ratio = willingness_to_pay.Ratio.of(fitted.model, self.result_, attribute, cost, population)
        if people is None or member_of is not None:
            ratio = replace(ratio, member_of=member_of)
            return willingness_to_pay.population_frame(
                fitted.model, self.result_, ratio, fitted.seed, quantiles, interval
            )
        if isinstance(people, str):
            check_option("people", people, ["fit", *class_names(fitted.model)])
        labels, group = self._group(None if isinstance(people, str) else people)
        if group.covariates is not None:
            mine = Covariates(group.covariates, torch.ones(len(labels), dtype=torch.float64))
            ratio = replace(ratio, people=mine)
        return willingness_to_pay.people_frame(fitted.model, self.result_, ratio, group, labels, interval)

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
            Index: decision maker. Columns: (taste, statistic) of coefficients that are random or shifted by covariates,
            averaged over the posterior of the population parameters. A person's row does not depend on the
            other people in X.
        """
        model = self._state().model
        labels, group = self._group(X)
        return individual_frame(model, self.result_, group, labels, statistic)

    def class_tastes(self, covariates: Mapping[str, float] | None = None, *, interval: float = 0.95) -> pd.DataFrame:
        """Shares of the classes, and the tastes of their members.

        Parameters
        ----------
        covariates : mapping of str to float, optional
            Values of the covariates of membership: shares are those among people who have them; by default among the
            people of the fit.
        interval : float
            Probability of the intervals.

        Returns
        -------
        pandas.DataFrame
            Index: ``class``, ``statistic`` ("share"; "mean" of a coefficient among the members, zero where they ignore
            it; "sd" of random coefficients among them, if tastes are spread within classes), ``coefficient``. Columns:
            ``estimate``, ``lower``, ``upper``.

        Raises
        ------
        SpecificationError
            If the model has no classes.
        """
        fitted = self._state()
        require_classes(fitted.model)
        people = fitted.people_with_covariates(covariates)
        return class_frame(fitted.model, self.result_, people, interval)

    def class_memberships(self, X: Any = None) -> pd.DataFrame:
        """Probabilities that decision makers belong to each class, given their choices.

        Parameters
        ----------
        X : long frame or ChoiceData, optional
            Choices of people, possibly not in the fit; the people of the fit by default.

        Returns
        -------
        pandas.DataFrame
            Index: decision maker. Columns: ``class1`` and so on; rows sum to one. Averaged over the posterior of the
            parameters.

        Raises
        ------
        SpecificationError
            If the model has no classes.
        """
        model = self._state().model
        require_classes(model)
        labels, group = self._group(X)
        return membership_frame(model, labels, class_memberships(model, self.result_, group))

    def sample_tastes(self, X: Any = None, n: int = 100) -> pd.DataFrame:
        """Posterior samples of people's coefficients given their choices, joint over coefficients and people.

        Parameters
        ----------
        X : long frame or ChoiceData, optional
            Choices of people, possibly not in the fit; the people of the fit by default.
        n : int
            Number of samples.

        Returns
        -------
        pandas.DataFrame
            Index: (sample, decision maker). Columns: fixed and random coefficients, which are amounts of money in
            willingness-to-pay space. Rows of one sample share the population parameters.
        """
        labels, group = self._group(X)
        return sampled_tastes(self._state().model, self.result_, group, labels, n)

    def person_fit(self, X: Any = None) -> pd.DataFrame:
        """Quality of the predictions of each person's own choices, given her posterior tastes.

        Parameters
        ----------
        X : long frame or ChoiceData, optional
            Choices of people, possibly not in the fit; the people of the fit by default.

        Returns
        -------
        pandas.DataFrame
            Index: decision maker. Columns: ``root_likelihood``, the geometric mean of the probabilities of the chosen
            alternatives; ``percent_certainty``, the share of the log likelihood of equal probabilities that is
            explained, 1 for certain choices, 0 for guesses, negative below; ``choices``, their number. Averaged over
            the posterior of the logarithm.

        References
        ----------
        Hauser (1978), Operations Research 26, for the share of information explained.
        """
        labels, group = self._group(X)
        return person_fit_frame(self._state().model, self.result_, group, labels)
