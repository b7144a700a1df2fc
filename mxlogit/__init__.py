"""Bayesian mixed logit: fit taste distributions to choice data in seconds.

>>> from mxlogit import MixedLogit, datasets
"""

import logging

from mxlogit import datasets
from mxlogit.choices import ChoiceData, PackedChoices, pack_choices, wide_to_long
from mxlogit.errors import (
    ChoiceDataError,
    ChoiceDataWarning,
    ConvergenceWarning,
    MissingExtraError,
    MxlogitError,
    NotFittedError,
    ProcessError,
    SpecificationError,
)
from mxlogit.estimator import MixedLogit
from mxlogit.guide.encoder import Encoder
from mxlogit.guide.subsampling import SBP
from mxlogit.inference.mcmc.engine import MCMC
from mxlogit.inference.msle.engine import MSLE
from mxlogit.inference.svi.dadvi import DADVI
from mxlogit.inference.svi.engine import SVI
from mxlogit.inference.svi.training import Training
from mxlogit.inference.vi.engine import VI
from mxlogit.model.priors import Priors
from mxlogit.postestimation.comparison import Comparison, compare_methods, compare_with_mcmc
from mxlogit.postestimation.hypotheses import HypothesisTest, likelihood_ratio_test, parameter_function, wald_test
from mxlogit.postestimation.memory_report import memory_report
from mxlogit.sampling.covariance import HuangWand, InverseWishart

__version__ = "0.1.0"
__all__ = [
    "DADVI",
    "MCMC",
    "MSLE",
    "SBP",
    "SVI",
    "VI",
    "ChoiceData",
    "ChoiceDataError",
    "ChoiceDataWarning",
    "Comparison",
    "ConvergenceWarning",
    "Encoder",
    "HuangWand",
    "HypothesisTest",
    "InverseWishart",
    "MissingExtraError",
    "MixedLogit",
    "MxlogitError",
    "NotFittedError",
    "PackedChoices",
    "Priors",
    "ProcessError",
    "SpecificationError",
    "Training",
    "compare_methods",
    "compare_with_mcmc",
    "datasets",
    "likelihood_ratio_test",
    "memory_report",
    "pack_choices",
    "parameter_function",
    "wald_test",
    "wide_to_long",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
