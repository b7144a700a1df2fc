"""Protocol of the engines: a settings object with one method, `run`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from mxlogit.execution.people import People
from mxlogit.fit import Fit
from mxlogit.model.mixed_logit import MixedLogitModel

Callback = Callable[[str], None]


@runtime_checkable
class Method(Protocol):
    """An inference engine: scikit-learn style settings and a pure function of model and data."""

    def run(self, model: MixedLogitModel, people: People, *, generator: torch.Generator, callback: Callback) -> Fit:
        """Fit ``model`` to the choices of ``people``; all randomness comes from ``generator``."""
        ...
