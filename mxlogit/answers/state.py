"""State and helpers shared by the methods of a fitted estimator."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from mxlogit.choices import ChoiceData, FrameChoices
from mxlogit.errors import ChoiceDataError, SpecificationError, check_option, suggest
from mxlogit.fit import Fit
from mxlogit.reading import read_for_prediction, read_like_fit
from mxlogit.request import Fitted
from mxlogit.results.classes import class_names
from mxlogit.results.individual_coefficients import Group
from mxlogit.results.prediction import Coefficients
from mxlogit.results.substitution import Attribute
from mxlogit.spec import Columns


class FittedModel(BaseEstimator):  # type: ignore[misc]
    """A fitted estimator: methods of its subclasses read its result and change nothing."""

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

    @property
    def _names(self) -> tuple[str, str, str]:
        return self.decision_maker, self.situation, self.alternative

    def _group(self, X: Any) -> tuple[np.ndarray, Group]:
        """Labels and choices of the people of a frame, by default of the fit."""
        fitted = self._state()
        if X is None:
            return fitted.decision_makers, fitted.fitted_people(fitted.decision_makers)
        data = read_like_fit(X, replace(self._columns(), weights=None), fitted)
        return data.decision_makers, fitted.people_of(data)

    def _rows(self, X: Any, *, weigh: bool = False) -> FrameChoices:
        """Rows of a long frame."""
        return read_for_prediction(X, self._columns(), self._state(), weigh=weigh)

    def _coefficients(self, rows: FrameChoices, tastes: str, history: Any = None) -> Coefficients:
        """Coefficients of the people of a frame, given their choices in the fit or in another frame, if asked for."""
        fitted = self._state()
        check_option("tastes", tastes, ["population", "individual", *class_names(fitted.model)])
        if history is None:
            return fitted.coefficients(self.result_, rows.data, tastes)
        past = read_like_fit(history, replace(self._columns(), weights=None), fitted)
        if not isinstance(past, ChoiceData):
            raise ChoiceDataError(f"history must be a long frame or a ChoiceData; got {type(past).__name__}.")
        return fitted.coefficients(self.result_, rows.data, tastes, past)

    def _attribute(self, label: str, rows: FrameChoices) -> Attribute:
        """Position of an attribute in the model, and of its products with covariates in the rows of a frame."""
        shifters = self._state().model.shifters.of_tastes.of(self._place(label))
        names = [shifters.names[covariate] for covariate in shifters.covariates]
        return Attribute(self._place(label), shifters.effects, tuple(rows.data.columns(names)))

    def _place(self, attribute: str) -> int:
        """Position of an attribute among the coefficients."""
        names = self._state().specification.names
        if attribute in self._state().specification.covariates:
            raise SpecificationError(
                f"{attribute!r} is a covariate of people, which shifts coefficients; ask for an attribute."
            )
        if attribute not in names:
            raise SpecificationError(
                f"{attribute!r} is no coefficient of this model, which has {list(names)}.{suggest(attribute, names)}"
            )
        products = self._state().specification.products
        if attribute in products:
            column, covariate = self._state().specification.shifters[products.index(attribute)]
            raise SpecificationError(
                f"{attribute!r} is the effect of {covariate!r} on the coefficient of {column!r}; ask for {column!r}, "
                "which includes it."
            )
        return list(names).index(attribute)
