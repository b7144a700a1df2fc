"""Synthetic decision makers and choices, and checks of the model by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from mxlogit.answers.state import FittedModel
from mxlogit.choices import ChoiceData
from mxlogit.errors import ChoiceDataError, check_option, check_whole
from mxlogit.model.mean_shifters import Covariates
from mxlogit.reading import read_like_fit
from mxlogit.request import resolve_seed
from mxlogit.results.coefficient_sources import CoefficientSource
from mxlogit.results.generation import DrawnPeople, SampledPeople, draw_covariates, draw_people, simulate_ranks
from mxlogit.results.predictive_checks import check_frame


class Generation(FittedModel):
    """Draws of what a fitted model predicts."""

    def sample_population(
        self, n: int = 1000, covariates: Mapping[str, float] | None = None, *, random_state: Any = 0
    ) -> pd.DataFrame:
        """Draw synthetic decision makers from the population.

        Parameters
        ----------
        n : int
            Number of people.
        covariates : mapping of str to float, optional
            Covariates that all of them have; by default those of people of the fit, drawn with replacement.
        random_state : int, numpy generator or None
            Seed.

        Returns
        -------
        pandas.DataFrame
            One row per person: coefficients of the attributes, with what covariates add, each person's from another
            sample of the posterior (after maximum likelihood, at the estimate); and the covariates.

        Raises
        ------
        SpecificationError
            If an argument is wrong.
        """
        fitted = self._state()
        check_whole("n", n, 1)
        model, generator = fitted.model, torch.Generator().manual_seed(resolve_seed(random_state))
        people = fitted.people_with_covariates(covariates)
        known = None if people is None else draw_covariates(people, n, generator)
        drawn = draw_people(model, self.result_, known, n, generator)
        if known is not None:
            drawn = model.shifters.shift(drawn, known)
        names = [*model.space.fixed, *model.space.random]
        varying = () if model.mixing.varying is None else model.mixing.varying.deviations
        kept = [i for i in range(len(names)) if i not in model.shifters.effects and i not in varying]
        index = pd.RangeIndex(1, n + 1, name="decision_maker")
        frame = pd.DataFrame(drawn[:, kept].numpy(), index, [names[i] for i in kept])
        for place, name in enumerate(fitted.specification.covariates):
            if known is not None and name not in fitted.specification.features:
                frame[name] = known[:, place].numpy()
        return frame

    def simulate(
        self, X: Any, n: int = 1, tastes: str = "population", *, history: Any = None, random_state: Any = 0
    ) -> pd.DataFrame:
        """Simulate choices of decision makers, who have the same tastes in all their choice situations.

        Parameters
        ----------
        X : long frame
            Choice situations; the choice column is not needed.
        n : int
            Number of simulated choices of each situation.
        tastes : {"population", "individual"}
            Tastes of new people in the places of those of X, or those of people of the fit given their choices.
        history : long frame or ChoiceData, optional
            Choices of the people of X on which their tastes are conditional.
        random_state : int, numpy generator or None
            Seed.

        Returns
        -------
        pandas.DataFrame
            Whether each row of X is chosen, one column per simulation: 0, 1, ...

        Raises
        ------
        ChoiceDataError
            If X has problems, or people who are not in the fit with ``tastes="individual"``.
        """
        rows, seed = self._rows(X), resolve_seed(random_state)
        check_whole("n", n, 1)
        source = self._people(rows, tastes, n, history, seed)
        ranks = simulate_ranks(rows.data, self._state().columns(rows.data), source, seed + 1)
        chosen = rows.data.first_rows[:-1].cpu().numpy()[:, None] + ranks
        result = np.zeros((len(rows.index), n), dtype=bool)
        for number in range(n):
            flags = np.zeros(len(rows.data.choices.rows), dtype=bool)
            flags[chosen[:, number]] = True
            result[:, number] = flags[np.maximum(rows.place, 0)] & (rows.place >= 0)
        return pd.DataFrame(result, index=rows.index)

    def predictive_check(
        self, X: Any, n: int = 200, tastes: str = "population", *, interval: float = 0.9, random_state: Any = 0
    ) -> pd.DataFrame:
        """Compare observed choices with simulated ones of as many people in the same choice situations.

        Parameters
        ----------
        X : long frame
            Choices.
        n : int
            Number of simulated data sets.
        tastes : {"population", "individual"}
            As in `simulate`: of new people, or of those of the fit given their choices.
        interval : float
            Probability of the intervals of simulated values.
        random_state : int, numpy generator or None
            Seed.

        Returns
        -------
        pandas.DataFrame
            Index: ``statistic``, ``alternative``. "share" of each alternative; "switching": share of a person's
            consecutive situations with other choices; "entropy" of a person's choices, mean over people (nats);
            "loyal": share of people who always choose the same. The last two are of people with two situations or
            more. Columns: ``observed``, ``mean``, ``lower``, ``upper``, and the posterior predictive ``p`` value:
            small if simulated values are nearly all on one side of the observed one.

        References
        ----------
        Gelman, Meng and Stern (1996), Statistica Sinica 6.
        """
        rows, seed = self._rows(X, weigh=True), resolve_seed(random_state)
        check_whole("n", n, 2)
        data = read_like_fit(X, self._columns(), self._state())
        if not isinstance(data, ChoiceData):
            raise ChoiceDataError("checks need a long frame of choices.")
        source = self._people(rows, tastes, n, None, seed)
        ranks = simulate_ranks(rows.data, self._state().columns(rows.data), source, seed + 1)
        return check_frame(data, ranks, interval)

    def _people(self, rows: Any, tastes: str, n: int, history: Any, seed: int) -> CoefficientSource:
        """Tastes of the people of a frame in ``n`` simulations."""
        fitted = self._state()
        check_option("tastes", tastes, ["population", "individual"])
        if tastes == "individual" or history is not None:
            return SampledPeople(self._coefficients(rows, tastes, history).sampled, n)
        found: Covariates | None = fitted.covariates_in(rows.data)
        return DrawnPeople(fitted.model, self.result_, None if found is None else found.values, n, seed)
