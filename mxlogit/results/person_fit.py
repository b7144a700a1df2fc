"""Quality of the predictions of people's choices by their own posterior tastes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from mxlogit.execution.people import on_cpu
from mxlogit.fit import Fit
from mxlogit.model.likelihood import panel_log_prob
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.results.individual_coefficients import Group, parameter_samples


def person_fit_frame(model: MixedLogitModel, fit: Fit, group: Group, labels: np.ndarray) -> pd.DataFrame:
    """Table of root likelihoods, percent certainties and numbers of choices."""
    f, parts = model.space.n_fixed, []
    for part, parameters in parameter_samples(model, fit, group):
        coefficients = model.mixing.coefficients(parameters[..., :f], parameters[..., f:])
        panel = group.panel.take(torch.arange(len(labels))[on_cpu(part)].to(group.places.device))
        like = panel.like
        log_prob = panel_log_prob(coefficients.to(like), panel).double().mean(0)
        chance = panel_log_prob(torch.zeros_like(coefficients[0]).to(like), panel).double()
        parts.append(torch.stack([log_prob, chance, panel.n_situations.double()], 1).cpu())
    log_prob, chance, count = torch.cat(parts).numpy().T
    with np.errstate(invalid="ignore", divide="ignore"):
        certainty = np.where(chance < 0.0, 1.0 - log_prob / chance, np.nan)
    data = {"root_likelihood": np.exp(log_prob / count), "percent_certainty": certainty, "choices": count.astype(int)}
    return pd.DataFrame(data, index=pd.Index(labels, name="decision_maker"))
