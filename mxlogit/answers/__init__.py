"""Answers of a fitted model: methods of the estimator that read its result and change nothing."""

from mxlogit.answers.comparison import Criteria
from mxlogit.answers.demand import Demand
from mxlogit.answers.predictions import Predictions
from mxlogit.answers.reports import Reports
from mxlogit.answers.tastes import Tastes


class Answers(Tastes, Predictions, Demand, Criteria, Reports):
    """Tastes, predictions, responses to changes, criteria and reports."""


__all__ = ["Answers"]
