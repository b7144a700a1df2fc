r"""Objectives of the guide, and their gradient estimators, from log weights of draws.

With s draws :math:`z = T_\phi(\epsilon)` per person and :math:`\log w = \log p(y, z) - \log q_\phi(z)`:

- ``elbo``: :math:`E \log w`;
- ``iwae``: :math:`E \log \tfrac1S \sum w` (Burda, Grosse and Salakhutdinov 2016, ICLR, arXiv 1509.00519);
- ``ess``: :math:`-\log` of the mean squared weight over the squared mean weight, whose maximiser has the largest
  effective sample size (after Dieng et al. 2017, NeurIPS, arXiv 1611.00328). Its gradient has no noise at q = p.

The standard gradient goes through z and through the parameters of q; the latter part has mean zero for the ELBO.
``stl`` drops it (sticking the landing, Roeder, Wu and Duvenaud 2017, NeurIPS, arXiv 1703.09194); ``dreg`` reweights
the remaining part so that IWAE's gradient is unbiased (Tucker et al. 2019, ICLR, arXiv 1810.04152).
"""

from __future__ import annotations

import math

from torch import Tensor

from mxlogit.errors import SpecificationError, check_option

OBJECTIVES = {"elbo": ("standard", "stl"), "iwae": ("standard", "dreg"), "ess": ("standard",)}


def check_objective(objective: str, gradient: str) -> None:
    """Raise unless the gradient estimator is valid for the objective.

    Raises
    ------
    SpecificationError
    """
    check_option("SVI(objective=...)", objective, list(OBJECTIVES))
    check_option("Training(gradient=...)", gradient, ["standard", "stl", "dreg"])
    if gradient not in OBJECTIVES[objective]:
        raise SpecificationError(
            f"Training(gradient={gradient!r}) is biased for objective={objective!r}; choose from "
            f"{OBJECTIVES[objective]}."
        )


def value(log_weights: Tensor, objective: str) -> Tensor:
    """Value (n,) of each person's objective from log weights (n, s)."""
    if objective == "elbo":
        return log_weights.mean(-1)
    count = math.log(log_weights.shape[-1])
    mean = log_weights.logsumexp(-1)
    if objective == "iwae":
        return mean - count
    return 2.0 * mean - (2.0 * log_weights).logsumexp(-1) - count


def surrogate(log_weights: Tensor, objective: str, gradient: str) -> Tensor:
    """Surrogate (n,) whose gradient is an estimate of the gradient of the objective.

    Parameters
    ----------
    log_weights : Tensor, shape (n, s)
        Log weights; for "stl" and "dreg" with detached parameters in log q, so that all gradients go through draws.
    objective : {"elbo", "iwae", "ess"}
    gradient : {"standard", "stl", "dreg"}

    Returns
    -------
    Tensor, shape (n,)
        Surrogate; equal to the objective for "standard" and "stl" only.
    """
    if gradient != "dreg":
        return value(log_weights, objective)
    shares = log_weights.detach().softmax(-1)
    return (shares.square() * log_weights).sum(-1)
