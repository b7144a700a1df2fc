"""Bayesian mixed logit: fit taste distributions to choice data in seconds.

Names are imported when they are first used, so that ``import mxlogit`` costs nothing.

>>> from mxlogit import MixedLogit, datasets
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mxlogit import datasets, plots
    from mxlogit.answers.tables import render_table
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
    from mxlogit.postestimation.model_selection import compare_models, fits_by
    from mxlogit.sampling.covariance import HuangWand, InverseWishart
    from mxlogit.spec import Mixture, Network

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
    "Mixture",
    "MxlogitError",
    "Network",
    "NotFittedError",
    "PackedChoices",
    "Priors",
    "ProcessError",
    "SpecificationError",
    "Training",
    "compare_methods",
    "compare_models",
    "compare_with_mcmc",
    "datasets",
    "fits_by",
    "likelihood_ratio_test",
    "memory_report",
    "pack_choices",
    "parameter_function",
    "plots",
    "render_table",
    "wald_test",
    "wide_to_long",
]

# Module of every public name.
_HOMES = {
    "ChoiceData": "mxlogit.choices",
    "ChoiceDataError": "mxlogit.errors",
    "ChoiceDataWarning": "mxlogit.errors",
    "Comparison": "mxlogit.postestimation.comparison",
    "ConvergenceWarning": "mxlogit.errors",
    "DADVI": "mxlogit.inference.svi.dadvi",
    "Encoder": "mxlogit.guide.encoder",
    "HuangWand": "mxlogit.sampling.covariance",
    "HypothesisTest": "mxlogit.postestimation.hypotheses",
    "InverseWishart": "mxlogit.sampling.covariance",
    "MCMC": "mxlogit.inference.mcmc.engine",
    "MSLE": "mxlogit.inference.msle.engine",
    "MissingExtraError": "mxlogit.errors",
    "MixedLogit": "mxlogit.estimator",
    "Mixture": "mxlogit.spec",
    "MxlogitError": "mxlogit.errors",
    "Network": "mxlogit.spec",
    "NotFittedError": "mxlogit.errors",
    "PackedChoices": "mxlogit.choices",
    "Priors": "mxlogit.model.priors",
    "ProcessError": "mxlogit.errors",
    "SBP": "mxlogit.guide.subsampling",
    "SVI": "mxlogit.inference.svi.engine",
    "SpecificationError": "mxlogit.errors",
    "Training": "mxlogit.inference.svi.training",
    "VI": "mxlogit.inference.vi.engine",
    "compare_methods": "mxlogit.postestimation.comparison",
    "compare_models": "mxlogit.postestimation.model_selection",
    "fits_by": "mxlogit.postestimation.model_selection",
    "compare_with_mcmc": "mxlogit.postestimation.comparison",
    "likelihood_ratio_test": "mxlogit.postestimation.hypotheses",
    "memory_report": "mxlogit.postestimation.memory_report",
    "pack_choices": "mxlogit.choices",
    "render_table": "mxlogit.answers.tables",
    "parameter_function": "mxlogit.postestimation.hypotheses",
    "wald_test": "mxlogit.postestimation.hypotheses",
    "wide_to_long": "mxlogit.choices",
}


def __getattr__(name: str) -> object:
    """Import a public name."""
    if name in ("datasets", "plots"):
        return importlib.import_module(f"mxlogit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mxlogit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names."""
    return sorted({*globals(), *__all__})


logging.getLogger(__name__).addHandler(logging.NullHandler())
