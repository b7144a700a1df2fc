"""Responses to changes: elasticities, marginal effects, diversion, surplus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mxlogit.answers.state import FittedModel
from mxlogit.choices import FrameChoices
from mxlogit.errors import SpecificationError, check_flag, check_option, check_probability
from mxlogit.results import surplus
from mxlogit.results.class_cost import ignoring_classes
from mxlogit.results.classes import class_number
from mxlogit.results.coefficient_sources import sampled_population
from mxlogit.results.cost import Cost
from mxlogit.results.elasticities import Question, diversion_table, elasticity_table, is_dummy, marginal_table

# Samples by which the existence of a mean is judged.
_JUDGES = 256


class Demand(FittedModel):
    """Responses of a fitted model to changes of attributes."""

    def elasticities(
        self,
        X: Any,
        attribute: str,
        *,
        kind: str = "point",
        change: float = 0.1,
        aggregate: str | None = "probability",
        tastes: str = "population",
        interval: float = 0.95,
        history: Any = None,
    ) -> pd.DataFrame:
        """Elasticities of choice probabilities to an attribute: per cent per per cent.

        Parameters
        ----------
        X : long frame
            Choice situations, weighted if X has the weights column of the fit. A frame of one situation with mean
            attributes gives elasticities at means.
        attribute : str
            Column of a coefficient.
        kind : {"point", "arc"}
            "point": of a small change. "arc": of growth by the share ``change``, both changes relative to the middle
            between before and after.
        change : float
            Relative change of arc elasticities, above -1.
        aggregate : {"probability", "sample", None}
            "probability": elasticity of the predicted share, if the attribute changes by the same per cent in all
            situations; that is the mean weighted by probabilities. "sample": mean over situations. None: one for each.
        tastes, history
            Parameters of `predict_proba`.
        interval : float
            Probability of the intervals.

        Returns
        -------
        pandas.DataFrame
            Index: ``changed`` (alternative whose attribute changes) and the alternative that responds: own elasticities
            where both are the same, else cross ones; with ``aggregate=None`` after decision maker and situation. Pairs
            refer to situations in which both are available. Columns: ``estimate``, ``lower``, ``upper``.

        References
        ----------
        Ben-Akiva and Lerman (1985), Discrete Choice Analysis, section 5.4; Train (2009), section 3.6.
        """
        check_option("kind", kind, ["point", "arc"])
        check_option("aggregate", aggregate, ["probability", "sample", None])
        if not (isinstance(change, (int, float)) and change > -1.0 and change != 0.0):
            raise SpecificationError(f"change must be a share above -1 and not zero, such as 0.1; got {change!r}.")
        question = self._question(X, tastes, interval, history)
        return elasticity_table(question, self._attribute(attribute, question.rows), kind, float(change), aggregate)

    def marginal_effects(
        self,
        X: Any,
        attribute: str,
        *,
        discrete: bool | None = None,
        aggregate: bool = True,
        tastes: str = "population",
        interval: float = 0.95,
        history: Any = None,
    ) -> pd.DataFrame:
        """Change of choice probabilities per unit of an attribute.

        Parameters
        ----------
        X, attribute, tastes, interval, history
            Parameters of `elasticities`.
        discrete : bool, optional
            Whether the effect is that of a change from zero to one instead of the derivative; by default if the
            attribute is zero or one everywhere in X.
        aggregate : bool
            Whether effects are averaged over choice situations (average marginal effects) or given for each.

        Returns
        -------
        pandas.DataFrame
            Index and columns as those of `elasticities`. The effects of a change sum to zero over the alternatives of
            a situation.
        """
        question = self._question(X, tastes, interval, history)
        asked = self._attribute(attribute, question.rows)
        check_flag("aggregate", aggregate)
        if discrete is None:
            discrete = is_dummy(question, asked)
        check_flag("discrete", discrete)
        return marginal_table(question, asked, discrete=discrete, each=not aggregate)

    def diversion(
        self,
        X: Any,
        attribute: str | None = None,
        *,
        tastes: str = "population",
        interval: float = 0.95,
        history: Any = None,
    ) -> pd.DataFrame:
        """Diversion ratios: where those go who leave an alternative.

        Parameters
        ----------
        X, tastes, interval, history
            Parameters of `elasticities`. The outside good is an alternative of X like any other.
        attribute : str, optional
            Attribute that makes people leave, a little worse; by default the alternative is removed (second choices).

        Returns
        -------
        pandas.DataFrame
            Index: ``changed`` (alternative that is left) and the alternative chosen instead. Columns: ``estimate``,
            ``lower``, ``upper``. Ratios of one ``changed`` sum to one.

        References
        ----------
        Conlon and Mortimer (2021), RAND Journal of Economics 52.
        """
        question = self._question(X, tastes, interval, history)
        return diversion_table(question, None if attribute is None else self._attribute(attribute, question.rows))

    def _question(self, X: Any, tastes: str, interval: float, history: Any) -> Question:
        check_probability("interval", interval)
        rows = self._rows(X, weigh=True)
        used = self._coefficients(rows, tastes, history)
        return Question(rows, self._state().columns(rows.data), used, interval, self._names)

    def surplus(
        self,
        X: Any,
        scenario: Any,
        cost: str | None = None,
        *,
        each: bool = False,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        tastes: str = "population",
        interval: float = 0.95,
        history: Any = None,
    ) -> pd.DataFrame:
        """Change of consumer surplus per choice situation, in units of the cost: positive for those who gain.

        It is the difference of log-sums over minus the cost coefficient, and, since utility is linear in the cost, the
        compensating variation.

        Parameters
        ----------
        X, scenario : long frame
            The same choice situations before and after a change of attributes, availability or alternatives; weighted
            if X has the weights column of the fit.
        cost : str, optional
            Column of the cost; by default the scale in willingness-to-pay space.
        each : bool
            Whether to give the mean over tastes of each situation instead of the distribution.
        quantiles : sequence of float
            Probabilities of quantiles of the distribution.
        tastes, history
            Parameters of `predict_proba`.
        interval : float
            Probability of the intervals.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate``, ``lower``, ``upper``. Index: ``statistic`` ("mean", quantiles such as "25 %", "share
            of winners", "share of losers"), over choice situations and tastes; with ``each`` (decision maker,
            situation).

        Raises
        ------
        SpecificationError
            If no cost is known, or its coefficient is positive or has no finite mean of the inverse.
        ChoiceDataError
            If the frames have problems or other choice situations, or the change depends on a normalisation: an
            alternative without a constant in a model with constants.

        References
        ----------
        Small and Rosen (1981), Econometrica 49; Train (2009), section 3.5.
        """
        check_flag("each", each)
        before, after = self._rows(X, weigh=True), self._rows(scenario)
        money = self._cost(cost, before, tastes)
        used = self._coefficients(before, tastes, history)
        columns = self._state().columns(before.data)
        change = surplus.Change.of(before, after, columns, self._attribute(money.label, before), self._kept(before))
        if each:
            return surplus.situation_table(change, before, used, interval, self._names[:2])
        return surplus.population_table(change, used, interval, quantiles)

    def _kept(self, rows: FrameChoices) -> tuple[int, ...]:
        """Columns of the covariates that shift latent normals: people keep them, whatever else changes."""
        shifters = self._state().model.shifters.of_latents
        return tuple(rows.data.columns([shifters.names[place] for place in shifters.covariates]))

    def _cost(self, label: str | None, rows: FrameChoices, tastes: str = "population") -> Cost:
        """The coefficient that measures money, if means over people exist."""
        fitted, scale = self._state(), getattr(self, "scale", None)
        label = scale if label is None else label
        if label is None:
            raise SpecificationError("surplus needs the column of the cost: surplus(X, scenario, cost='...').")
        cost = Cost.of(fitted.model, self.result_, label, fitted.covariates_in(rows.data))
        population, _ = sampled_population(fitted.model, self.result_, _JUDGES)
        exists, verdict = cost.judge(population, class_number(tastes, fitted.model))
        ignoring = ignoring_classes(population, cost.place, class_number(tastes, fitted.model))
        if ignoring:
            raise SpecificationError(
                f"{ignoring} ignore {label!r}: nothing is worth an amount of it to them. Ask for the surplus of other "
                "classes: surplus(..., tastes='class1')."
            )
        if not exists:
            raise SpecificationError(f"a surplus has no mean over people. {verdict}")
        varying = fitted.model.mixing.varying
        if varying is not None and cost.place in varying.coefficients:
            raise SpecificationError(
                f"a surplus has no mean over choice situations. The coefficient of {label!r} varies between these "
                "(within) and reaches zero in some: money is worth any amount there. Leave it out of within."
            )
        if cost.is_positive(population):
            raise SpecificationError(
                f"the coefficient of {label!r} is positive: more of it raises utility, so it does not measure what "
                "people pay. Give a cost with a negative coefficient, or change the column's sign."
            )
        return cost
