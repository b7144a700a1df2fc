"""Bayesian mixed logit: fit taste distributions to choice data in seconds.

>>> from mxlogit import MixedLogit, datasets
"""

import logging

from mxlogit import datasets
from mxlogit.choices import ChoiceData, PackedChoices, wide_to_long
from mxlogit.errors import (
    ChoiceDataError,
    ConvergenceWarning,
    MxlogitError,
    NotFittedError,
    ProcessError,
    SpecificationError,
)
from mxlogit.estimator import MixedLogit
from mxlogit.hypotheses import HypothesisTest, likelihood_ratio_test, parameter_function, wald_test
from mxlogit.inference.mcmc import MCMC
from mxlogit.inference.msle import MSLE
from mxlogit.inference.vi import VI
from mxlogit.priors import Priors
from mxlogit.sampling.covariance import HuangWand, InverseWishart

__version__ = "0.1.0"
__all__ = [
    "MCMC",
    "MSLE",
    "VI",
    "ChoiceData",
    "ChoiceDataError",
    "ConvergenceWarning",
    "HuangWand",
    "HypothesisTest",
    "InverseWishart",
    "MixedLogit",
    "MxlogitError",
    "NotFittedError",
    "PackedChoices",
    "Priors",
    "ProcessError",
    "SpecificationError",
    "datasets",
    "likelihood_ratio_test",
    "parameter_function",
    "wald_test",
    "wide_to_long",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
