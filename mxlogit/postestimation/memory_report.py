"""Memory of a training step by part of the guide, and its reduction by memory-saving backward passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from sklearn.base import clone

from mxlogit.errors import SpecificationError
from mxlogit.execution.processes import Communicator
from mxlogit.guide.encoder import Encoder
from mxlogit.guide.subsampling import SBP
from mxlogit.inference.svi.engine import SVI
from mxlogit.request import resolve_method

if TYPE_CHECKING:
    from mxlogit.estimator import MixedLogit

# Shares of situations kept by the memory-saving backward passes in the table.
_KEEPS = (0.5, 0.25, 0.125)


def memory_report(est: MixedLogit, X: Any) -> pd.DataFrame:
    """Memory (MB) that a training step of an amortized guide stores for its backward pass, by part of the guide.

    It is measured for one mini-batch of ``Training(batch_size=...)`` decision makers with one draw each, at the start
    of training. On the CPU it is the size of the storages that autograd records, each counted once; on a GPU the peak
    increase of allocated memory during a forward and a backward pass.

    Parameters
    ----------
    est : MixedLogit
        Estimator with a ``method=SVI(...)`` that trains a set encoder; it is not fitted.
    X : long frame, ChoiceData or PackedChoices
        Choices.

    Returns
    -------
    pandas.DataFrame
        Index: "everything recorded", shares of situations kept, and the estimator's own ``sbp`` if there is one.
        Columns: "encoder", "flow", "likelihood" and "step" (their sum) in MB, and "share" of the first row's step.

    Raises
    ------
    SpecificationError
        If the method trains no set encoder.
    """
    method = resolve_method(est.method)
    if not isinstance(method, SVI) or not isinstance(method.resolved_encoder, Encoder):
        raise SpecificationError(
            f"memory_report is about guides with a set encoder, such as method=SVI(); got {method!r}."
        )
    method.check()
    plan = method.plan()
    # Imported here: the default route needs neither Pyro nor its import time.
    from mxlogit.guide.memory import memory_report as report
    from mxlogit.inference.start import fit_multinomial_logit, start_population
    from mxlogit.inference.svi.guides import make_guide

    fitted, people, _ = clone(est)._prepare(X, Communicator())
    if fitted.model.space.n_random == 0:
        raise SpecificationError("memory_report: without random coefficients there is no encoder.")
    batch = people.take(torch.arange(min(len(people), method.resolved_training.batch_size)))
    panel = batch.require_single_process().dense()
    start = start_population(fitted.model, fit_multinomial_logit(batch, fitted.model.prior.deviation))
    guide = make_guide(plan, fitted.model, panel, start, fitted.seed)
    own = plan.sbp
    shape: SBP = SBP() if own is None or own.mode in ("official", "winners") else own
    variants: dict[str, SBP | None] = {"everything recorded": None}
    variants |= {f"keep {keep}": replace(shape, keep=keep, recompute=False, half=False) for keep in _KEEPS}
    variants |= {} if own is None else {"sbp as given": own}
    rows = {}
    for name, sbp in variants.items():
        guide.sbp = sbp
        rows[name] = report(guide, panel)
    table = pd.DataFrame.from_dict(rows, orient="index") / 1e6
    return table.assign(share=table["step"] / table["step"].iloc[0])
