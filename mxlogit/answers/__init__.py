"""Answers of a fitted model: methods of the estimator that read its result and change nothing."""

from mxlogit.answers.comparison import Criteria
from mxlogit.answers.demand import Demand
from mxlogit.answers.generation import Generation
from mxlogit.answers.predictions import Predictions
from mxlogit.answers.reports import Reports
from mxlogit.answers.tastes import Tastes


class Answers(Tastes, Predictions, Demand, Generation, Criteria, Reports):
    """Tastes, predictions, responses to changes, synthetic people and choices, criteria and reports."""


__all__ = ["Answers"]
