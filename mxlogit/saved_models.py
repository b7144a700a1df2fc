"""Fitted estimators on disk: which objects a saved model consists of, and how they are made again."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mxlogit.choices.packed import PackedChoices
from mxlogit.diagnostics.error import Cause, ErrorEstimate, SquaredErrors
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.draws.simulation import PersonDraws
from mxlogit.errors import MxlogitError, SpecificationError
from mxlogit.execution.codec import Codec, Recipe, recipe_of
from mxlogit.execution.model_folder import damaged, read_folder, write_folder
from mxlogit.execution.shard_panels import StreamedPanels
from mxlogit.fit import Fit, HistoryRow, Samples, Status, TasteStates
from mxlogit.guide.encoder import Encoder
from mxlogit.guide.flows import LocalFlow
from mxlogit.guide.subsampling import SBP
from mxlogit.inference.mcmc.engine import MCMC
from mxlogit.inference.msle.engine import MSLE
from mxlogit.inference.svi.dadvi import DADVI
from mxlogit.inference.svi.engine import SVI
from mxlogit.inference.svi.training import Training
from mxlogit.inference.vi.engine import VI
from mxlogit.inference.without_columns import ReducedTastes, Reduction
from mxlogit.integration.class_tastes import ClassTastes
from mxlogit.integration.mixture_tastes import MixtureTastes
from mxlogit.integration.tastes import ConditionalTastes, ImportanceTastes
from mxlogit.model.class_prior import ClassPrior
from mxlogit.model.classes import ClassPopulation, ClassSpace
from mxlogit.model.dense_panels import PanelDifferences, Section
from mxlogit.model.latent_shifts import LatentShifts
from mxlogit.model.mean_shifters import Covariates, MeanShifters
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import RaggedPanels
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.priors import PriorDensity, Priors
from mxlogit.model.situation_deviations import SituationDeviations
from mxlogit.request import Fitted
from mxlogit.sampling.covariance import HuangWand, InverseWishart
from mxlogit.spec import HiddenUnits, Mixture, Network, Specification

_SETTINGS = (VI, SVI, MSLE, MCMC, DADVI, Encoder, SBP, Training, HuangWand, InverseWishart, Priors)
_MODEL = (
    Specification,
    Mixture,
    Network,
    HiddenUnits,
    ParameterSpace,
    PopulationParameters,
    ClassSpace,
    ClassPopulation,
    ClassPrior,
    PriorDensity,
    MixedLogitModel,
    MeanShifters,
    LatentShifts,
    SituationDeviations,
    Covariates,
    Fitted,
)
_PANELS = (PanelDifferences, RaggedPanels, Section)
_RESULT = (Fit, Samples, TasteStates, HistoryRow, Diagnostics, ErrorEstimate, SquaredErrors, PersonDraws)
_REDUCED = (ReducedTastes, Reduction)


def _attributes_of(*names: str) -> Any:
    """Function from an object to attributes of these names."""
    return lambda value: {name: getattr(value, name) for name in names}


def _make_flow(state: dict[str, torch.Tensor], **arguments: Any) -> LocalFlow:
    # Weights are initialised at random before they are overwritten.
    with torch.random.fork_rng(devices=[]):
        flow = LocalFlow(**arguments).to(next(iter(state.values())).dtype)
    flow.load_state_dict(state)
    return flow.eval().requires_grad_(False)


def _make_streamed(packed: Path, names: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> StreamedPanels:
    return StreamedPanels(PackedChoices.open(packed), names, device, dtype)


_MADE = (
    Recipe(
        Mixing,
        lambda value: {
            "names": [f.name for f in value.families],
            "scale_position": value.scale_position,
            "shifts": value.shifts,
            "varying": value.varying,
        },
        Mixing,
    ),
    Recipe(
        ImportanceTastes,
        _attributes_of(
            "model",
            "seed",
            "degrees_of_freedom",
            "draws",
            "newton_steps",
            "variational_steps",
            "even_weights",
            "flow",
        ),
        ImportanceTastes,
    ),
    Recipe(ClassTastes, _attributes_of("model"), ClassTastes),
    Recipe(MixtureTastes, _attributes_of("model", "seed"), MixtureTastes),
    Recipe(ConditionalTastes, _attributes_of("model", "draws", "signs"), ConditionalTastes),
    Recipe(LocalFlow, lambda value: {**value.arguments, "state": dict(value.state_dict())}, _make_flow),
    Recipe(
        StreamedPanels,
        lambda value: {
            "packed": Path(value.packed.path).absolute(),
            "names": value.names,
            "device": torch.device("cpu"),
            "dtype": value.like.dtype,
        },
        _make_streamed,
    ),
)
_CODEC = Codec(
    [*map(recipe_of, (*_SETTINGS, *_MODEL, *_PANELS, *_RESULT, *_REDUCED)), *_MADE],
    [Status, Cause],
)


def write_model(folder: str | Path, parameters: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write a fitted estimator to a folder.

    Parameters
    ----------
    folder : path
        A new folder, or one with a saved model, which is replaced.
    parameters : dict
        Arguments of the estimator. A generator as ``random_state`` is left out.
    facts : dict
        What the fit has found.

    Raises
    ------
    SpecificationError
        If the folder holds something else or cannot be written, or an argument cannot be saved.
    """
    state = parameters.get("random_state")
    if isinstance(state, (np.random.Generator, np.random.RandomState)):
        parameters = {**parameters, "random_state": None}
    tensors = dict[str, torch.Tensor]()
    try:
        content = {"parameters": _CODEC.encode(parameters, tensors), "facts": _CODEC.encode(facts, tensors)}
    except TypeError as trouble:
        raise SpecificationError(f"this model cannot be saved: {trouble}.") from None
    write_folder(Path(folder), content, tensors, version("mxlogit"))


def read_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the arguments of an estimator and what its fit has found.

    Raises
    ------
    SpecificationError
        If there is no saved model, it is damaged, or a newer version wrote it.
    """
    content, tensors = read_folder(Path(folder))
    try:
        parts = [_CODEC.decode(content[name], tensors) for name in ("parameters", "facts")]
    except MxlogitError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as trouble:
        raise damaged(Path(folder), f"its description does not fit ({type(trouble).__name__}: {trouble})") from None
    return parts[0], parts[1]
