"""Shared fixtures: one thread, no leaks of global state, and a small ragged panel."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mxlogit import ChoiceData
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.differences import difference_panels
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import Priors, resolve_priors

torch.set_num_threads(1)

REFERENCE = Path(__file__).parent / "reference"


def global_state() -> dict[str, object]:
    """Plain values of everything global that a call could disturb."""
    numpy_state = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "validate": torch.distributions.Distribution._validate_args,
    }


@pytest.fixture(autouse=True)
def no_global_leak() -> Iterator[None]:
    before = global_state()
    yield
    changed = [name for name, value in global_state().items() if value != before[name]]
    assert not changed, f"test changed global state: {', '.join(changed)}"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@pytest.fixture
def reference() -> Path:
    return REFERENCE


@pytest.fixture
def data(generator: torch.Generator) -> ChoiceData:
    """5 people, up to 3 situations, 4 alternatives, 5 attributes; ragged, with unavailable alternatives."""
    n, t, j, k = 5, 3, 4, 5
    attributes = torch.randn(n, t, j, k, generator=generator, dtype=torch.float64)
    available = torch.rand(n, t, j, generator=generator) > 0.25
    observed = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    chosen = torch.randint(0, j, (n, t), generator=generator)
    available.scatter_(2, chosen[..., None], value=True)
    return ChoiceData.from_arrays(
        attributes,
        chosen,
        names=list("abcde"),
        available=available,
        observed=observed,
        weights=torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0]),
    )


@pytest.fixture
def panel(data: ChoiceData) -> PanelDifferences:
    """The panels of `data` as one dense array, with unavailable rows."""
    return difference_panels(data).dense()


@pytest.fixture
def space() -> ParameterSpace:
    """Two fixed and three random coefficients, two of them correlated."""
    return ParameterSpace(("a", "b"), ("c", "d", "e"), ((0, 2), (1,)))


@pytest.fixture
def model(space: ParameterSpace) -> MixedLogitModel:
    mixing = Mixing(["normal", "lognormal", "normal"])
    prior = resolve_priors(Priors(), mixing, space.n_fixed, [1.0] * 5)
    return MixedLogitModel(space, mixing, prior, torch.ones(5, dtype=torch.float64))
