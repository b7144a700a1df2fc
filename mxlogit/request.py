"""From constructor arguments to what a fit needs: method, device, dtype, seed, model, progress."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from mxlogit.choices import ChoiceData, PackedChoices
from mxlogit.choices.covariates import read_covariates
from mxlogit.choices.hidden_units import activate
from mxlogit.choices.labels import explain_kinds, find_labels, listed
from mxlogit.choices.moments import AttributeMoments
from mxlogit.errors import ChoiceDataError, SpecificationError, check_option
from mxlogit.execution.people import PanelSource
from mxlogit.execution.processes import Communicator, own_gpu
from mxlogit.execution.shard_panels import StreamedPanels
from mxlogit.fit import Fit
from mxlogit.inference.mcmc.engine import MCMC
from mxlogit.inference.method import Method
from mxlogit.inference.msle.engine import MSLE
from mxlogit.inference.svi.engine import SVI
from mxlogit.inference.vi.engine import VI
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.differences import difference_panels
from mxlogit.model.mean_shifters import Covariates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import RaggedPanels
from mxlogit.model.situation_deviations import SituationDeviations
from mxlogit.model.situation_nodes import with_nodes
from mxlogit.results.classes import class_number
from mxlogit.results.coefficient_sources import PeopleSource, PopulationSource, WeightedPeopleSource
from mxlogit.results.individual_coefficients import Group
from mxlogit.results.prediction import Coefficients
from mxlogit.spec import Specification

_METHODS: dict[str, type[VI] | type[SVI] | type[MSLE] | type[MCMC]] = {"vi": VI, "svi": SVI, "msle": MSLE, "mcmc": MCMC}
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Fitted:
    """State of a fitted estimator beside its result.

    Its people are those from place ``first`` of ``count``, who have ``rows`` of alternatives together. If covariates
    shift the means of tastes, ``everybody`` has those of the people of all processes.
    """

    specification: Specification
    model: MixedLogitModel
    panel: PanelSource
    decision_makers: np.ndarray
    alternatives: np.ndarray | None
    seed: int
    first: int = 0
    count: int = 0
    rows: int = 0
    everybody: Covariates | None = None

    def difference(self, data: ChoiceData | PackedChoices) -> PanelSource:
        """Panels of other data with the columns of the fit."""
        like = self.panel.like
        return make_panels(data, self.specification, like.device, like.dtype, varying=self.model.mixing.varying)

    def fitted_people(self, labels: np.ndarray) -> Group:
        """Decision makers of the fit, with their choices there; raises as `positions` does."""
        positions, panel = self.positions(labels), self.panel
        all_positions = torch.arange(len(panel), device=positions.device)
        if not torch.equal(positions, all_positions):
            # Packed choices are read in order.
            order = positions.argsort()
            panel = panel.take(positions[order]).take(order.argsort())
        covariates = None if self.everybody is None else self.everybody.values[self.first + positions.cpu()]
        return Group(panel, self.ranks(labels), positions, self.count, self.rows, covariates)

    def people_of(self, data: ChoiceData | PackedChoices) -> Group:
        """Decision makers, seen or never seen, with other choices."""
        covariates = covariates_of(data, self.specification)
        ranks = self.ranks(data.decision_makers)
        return Group(self.difference(data), ranks, None, self.count, self.rows, covariates)

    def people_with_covariates(self, given: Mapping[str, float] | None = None) -> Covariates | None:
        """Covariates of the people of the fit, or of one person with given values; None in models without covariates.

        Raises
        ------
        SpecificationError
            If given values are not those of the model's covariates.
        """
        networks, names = self.specification.networks, list(self.specification.covariates)
        names = [name for name in names if name not in self.specification.features]
        if given is None:
            return self.everybody
        given = dict(given) if isinstance(given, (Mapping, pd.Series)) else given
        if not isinstance(given, Mapping) or set(given) != set(names):
            raise SpecificationError(
                f"covariates must give a number for each covariate of this model, {names}; got {given!r}."
            )
        values = [given[name] for name in names]
        if not all(isinstance(value, (int, float, np.number, np.bool_)) and np.isfinite(value) for value in values):
            raise SpecificationError(f"covariates must be finite numbers; got {given!r}.")
        known = {name: torch.tensor([float(value)], dtype=torch.float64) for name, value in given.items()}
        for units in networks:
            found = activate(units, torch.stack([known[name] for name in units.covariates], 1))
            known.update(zip(units.features, found.T, strict=True))
        return Covariates(
            torch.stack([known[name] for name in self.specification.covariates], 1), torch.ones(1).double()
        )

    def covariates_in(self, data: ChoiceData) -> Covariates | None:
        """Covariates of the people of other choices; None in models without covariates."""
        values = covariates_of(data, self.specification)
        return None if values is None else Covariates(values, data.weights.cpu().double())

    def positions(self, wanted: np.ndarray) -> torch.Tensor:
        """Places of decision makers among those of the fit.

        Raises
        ------
        ChoiceDataError
            If some were not in the fit.
        """
        place = find_labels(self.decision_makers, wanted)
        unknown = wanted[place < 0]
        if len(unknown):
            raise ChoiceDataError(
                f"{len(unknown)} decision makers were not in the fit (first: {listed(unknown[:5])}). Use "
                "tastes='population', or individual_coefficients(X) with their choices."
                f"{explain_kinds(self.decision_makers, unknown)}"
            )
        return torch.from_numpy(place).to(self.panel.like.device)

    def ranks(self, labels: np.ndarray) -> torch.Tensor:
        """Ranks of decision makers among those of the fit by first appearance; their number for those never seen."""
        appearance = self.panel.appearance if isinstance(self.panel, (PanelDifferences, RaggedPanels)) else None
        order = self.first + np.arange(len(self.panel)) if appearance is None else appearance.cpu().numpy()
        # Those never seen have place -1: the last one.
        return torch.from_numpy(np.append(order, self.count)[find_labels(self.decision_makers, labels)])

    def columns(self, data: ChoiceData) -> list[int]:
        """Positions of the attributes of the model in choice data."""
        return data.columns(self.specification.names)

    def coefficients(self, fit: Fit, data: ChoiceData, tastes: str, history: ChoiceData | None = None) -> Coefficients:
        """Coefficients of the people of ``data``.

        Parameters
        ----------
        fit : Fit
            Result of the fit.
        data : ChoiceData
            Choice situations of the people.
        tastes : {"population", "individual"} or the name of a class
            New people, or these decision makers of the fit given their choices there, or the members of a class.
        history : ChoiceData, optional
            Choices on which the tastes are conditional instead.

        Raises
        ------
        ChoiceDataError
            If decision makers of ``data`` are neither in the fit nor in the history.
        """
        model = self.model
        member_of = class_number(tastes, model)
        if member_of is not None and history is not None:
            raise SpecificationError(f"tastes={tastes!r} are those of a class, whatever the history; leave it out.")
        if member_of is not None or (tastes == "population" and history is None):
            mean = PopulationSource.of_mean(model, fit, self.seed, member_of)
            return Coefficients(mean, PopulationSource.of_samples(model, fit, self.seed, member_of=member_of))
        group = self.fitted_people(data.decision_makers) if history is None else self._with_history(history, data)
        self._check_covariates(data, group)
        return Coefficients(WeightedPeopleSource(model, fit, group), PeopleSource(model, fit, group))

    def _check_covariates(self, data: ChoiceData, group: Group) -> None:
        """Refuse covariates that shift latent normals and are not those of the choices that tastes are conditional on.

        Raises
        ------
        ChoiceDataError
            If they differ.
        """
        shifters = self.model.shifters.of_latents
        if not shifters or group.covariates is None:
            return
        names = [shifters.names[place] for place in shifters.covariates]
        person = torch.arange(data.n_decision_makers).repeat_interleave(data.choices.panel_lengths.cpu())
        now = data.choices.rows[data.first_rows[:-1]][:, data.columns(names)].double().cpu()
        differs = torch.zeros(data.n_decision_makers, dtype=torch.bool)
        differs[person[(now != group.covariates[person][:, list(shifters.covariates)]).any(1)]] = True
        if bool(differs.any()):
            labels = listed(data.decision_makers[differs.numpy()][:5])
            raise ChoiceDataError(
                f"{sorted(set(names))} shift latent normals, and differ for {int(differs.sum())} decision makers from "
                f"those of their choices (first: {labels}). Tastes given choices are those of people as they were; use "
                "tastes='population'."
            )

    def _with_history(self, history: ChoiceData, data: ChoiceData) -> Group:
        """People of ``data`` with their choices in ``history``."""
        place = find_labels(history.decision_makers, data.decision_makers)
        unknown = data.decision_makers[place < 0]
        if len(unknown):
            raise ChoiceDataError(
                f"{len(unknown)} decision makers of X have no choices in the history (first: {listed(unknown[:5])})."
                f"{explain_kinds(history.decision_makers, unknown)}"
            )
        return self.people_of(history.take(torch.from_numpy(place).to(history.weights.device)))


def gather_covariates(
    data: ChoiceData | PackedChoices, specification: Specification, team: Communicator
) -> Covariates | None:
    """Covariates of the people of all processes, in the order of these; None if the model has none."""
    mine = covariates_of(data, specification)
    if mine is None:
        return None
    values, weights = zip(*team.gather((mine, data.weights.cpu().double())), strict=True)
    return Covariates(torch.cat(values), torch.cat(weights))


def find_offsets(specification: Specification, everybody: Covariates | None) -> tuple[float, ...]:
    """Averages that are subtracted from the covariate of each effect; zero where the mean itself is held."""
    if everybody is None:
        return ()
    averages, held = everybody.moments()[0].tolist(), dict(specification.held)
    place = {name: i for i, name in enumerate(specification.covariates)}
    return tuple(0.0 if column in held else averages[place[name]] for column, name in specification.shifters)


def covariates_of(data: ChoiceData | PackedChoices, specification: Specification) -> torch.Tensor | None:
    """Covariates (n, c), float64, of the people of choice data; None if the model has none."""
    if isinstance(data, PackedChoices) or not specification.covariates:
        return None
    return read_covariates(data, specification.covariates).cpu()


def label_keys(labels: np.ndarray) -> torch.Tensor:
    """A whole number (n,) for every label, the same in every frame."""
    return torch.tensor([zlib.crc32(str(label).encode()) for label in listed(labels)], dtype=torch.int64)


def resolve_method(method: str | Method) -> Method:
    """Return the settings object of a method given by name or as an object."""
    if isinstance(method, str):
        check_option("method", method, list(_METHODS))
        return _METHODS[method]()
    if isinstance(method, type) or not isinstance(method, Method):
        raise SpecificationError(
            f"method must be 'vi', 'svi', 'msle', 'mcmc' or a settings object such as VI() or MCMC(); got {method!r}."
        )
    return method


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device to compute on; "auto" is CUDA where there is one."""
    if device == "auto":
        return own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise SpecificationError(f"device must be 'auto', 'cpu', 'cuda' or a torch.device; got {device!r}.") from None
    if wanted.type == "meta":
        raise SpecificationError("device='meta' computes nothing; take 'auto', 'cpu' or 'cuda'.")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise SpecificationError("device='cuda' was asked for, but torch sees no CUDA device.")
    return wanted


def resolve_dtype(dtype: str | torch.dtype, method: Method) -> torch.dtype:
    """Return the floating point type of the fit; "auto" is float64 for MSLE, else float32."""
    if isinstance(dtype, torch.dtype):
        check_option("dtype", dtype, list(_DTYPES.values()))
        return dtype
    check_option("dtype", dtype, ["auto", *_DTYPES])
    return _DTYPES.get(dtype, torch.float64 if isinstance(method, MSLE) else torch.float32)


def resolve_seed(random_state: Any) -> int:
    """A whole number from a seed or generator; global generators are never touched."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**62))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**62))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool) and random_state >= 0:
        return int(random_state) % 2**62
    raise SpecificationError(
        f"random_state must be None, a whole number from 0, or a numpy generator; got {random_state!r}."
    )


class ProgressLine:
    """A progress line on terminals after a second, or plain lines when verbose; of one of several processes only."""

    def __init__(self, verbose: int, rank: int = 0) -> None:
        self.verbose, self.silent = verbose, rank > 0

    def __enter__(self) -> ProgressLine:
        quiet = True if self.verbose or self.silent else None
        self._bar = tqdm(total=0, bar_format="{desc} [{elapsed}]", disable=quiet, delay=1.0, leave=False)
        return self

    def __call__(self, text: str) -> None:
        """Show a line of text."""
        if self.silent:
            return
        if self.verbose:
            sys.stderr.write(f"{text}\n")
        else:
            self._bar.set_description_str(text)

    def __exit__(self, *details: object) -> None:
        self._bar.close()


def make_panels(
    data: ChoiceData | PackedChoices,
    specification: Specification,
    device: torch.device,
    dtype: torch.dtype,
    offsets: tuple[float, ...] = (),
    varying: SituationDeviations | None = None,
) -> PanelSource:
    """Difference choice data against the chosen alternatives: now, or shard by shard whenever they are read.

    ``offsets`` are subtracted from the covariates of the effects on latent normals, whose products are zero. With
    ``varying`` coefficients every situation has nodes.
    """
    if isinstance(data, PackedChoices):
        return StreamedPanels(data, specification.names, device, dtype)
    mine = specification.latent_effects
    covariates = data.columns([*(specification.shifters[i][1] for i in mine), *specification.membership])
    panels = difference_panels(data.to(device=device), data.columns(specification.names), dtype, covariates)
    if mine:
        assert panels.covariates is not None
        panels.values[..., [specification.names.index(specification.products[i]) for i in mine]] = 0.0
        if offsets:
            panels.covariates.sub_(panels.covariates.new_tensor([offsets[i] for i in mine]))
    if varying is not None:
        panels = with_nodes(panels, varying)
    return panels.ranked()


def sum_moments(data: ChoiceData | PackedChoices, specification: Specification, team: Communicator) -> AttributeMoments:
    """Moments of the attributes over the people of all processes."""
    moments = data.moments() if isinstance(data, PackedChoices) else AttributeMoments.of(data)
    used = moments.take(data.columns(specification.names))
    gram, square, count = team.all_reduce_sum(used.gram, used.square, used.count)
    return AttributeMoments(gram, square, count, max(team.gather(used.rounding)))
