"""A model without some of its random coefficients, and the fit of the whole model that a fit without them is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.errors import SpecificationError
from mxlogit.execution.people import PanelSource, People
from mxlogit.fit import Fit, Samples, TasteDraws, TasteSampler, TasteStates
from mxlogit.integration.tastes import WeightedTastes, join_fixed
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import Panels, RaggedPanels
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.situation_deviations import SituationDeviations

# Size of a taste that stands for zero, in utils for an attribute's typical difference, and the standard deviation of
# its logarithm.
_NEGLIGIBLE_TASTE = 1e-8
_NARROW = 0.01


@dataclass(frozen=True)
class SelectedColumns:
    """Some columns of the panels of a source, as a `PanelSource`."""

    source: PanelSource
    columns: list[int]

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        return self.source.like

    @property
    def n_rows(self) -> int:
        """Mean number of rows of a person, rounded up."""
        return self.source.n_rows

    @property
    def n_columns(self) -> int:
        """Number of attributes."""
        return len(self.columns)

    @property
    def weights(self) -> Tensor:
        """Weights (n,)."""
        return self.source.weights

    def __len__(self) -> int:
        return len(self.source)

    def chunks(self, size: int) -> Iterator[tuple[slice, Panels]]:
        """Iterate over consecutive people, at most ``size`` at a time."""
        for part, panel in self.source.chunks(size):
            yield part, _take_columns(panel, self.columns)

    def take(self, people: Tensor) -> Panels:
        """Return some people, by an index tensor, in memory."""
        return _take_columns(self.source.take(people), self.columns)


def _take_columns(panel: Panels, columns: list[int]) -> Panels:
    return replace(panel, values=panel.values[..., columns].contiguous())


def select_columns(source: PanelSource, columns: list[int]) -> PanelSource:
    """Panels with some of their columns, in the order wanted: in memory where the source is."""
    if isinstance(source, (PanelDifferences, RaggedPanels)):
        return _take_columns(source, columns)
    return SelectedColumns(source, columns)


@dataclass(frozen=True)
class Reduction:
    """A model without the random coefficients at some places.

    Attributes
    ----------
    full : MixedLogitModel
    dropped : tuple of int
        Places among the random coefficients, increasing.
    """

    full: MixedLogitModel
    dropped: tuple[int, ...]

    @property
    def kept(self) -> list[int]:
        """Places of the other random coefficients."""
        return [i for i in range(self.full.space.n_random) if i not in self.dropped]

    @property
    def columns(self) -> list[int]:
        """Places of the columns of the model without them."""
        n_fixed = self.full.space.n_fixed
        return [*range(n_fixed), *(n_fixed + i for i in self.kept)]

    @property
    def model(self) -> MixedLogitModel:
        """The model without them."""
        full, kept, columns = self.full, self.kept, self.columns
        prior = full.prior
        blocks = [tuple(kept.index(i) for i in block if i in kept) for block in full.space.blocks]
        held = tuple((columns.index(place), value) for place, value in full.space.held if place in columns)
        random = tuple(full.space.random[i] for i in kept)
        space = ParameterSpace(full.space.fixed, random, tuple(block for block in blocks if block), held)
        prior = replace(
            prior, mean=prior.mean[columns], deviation=prior.deviation[columns], sd_scale=prior.sd_scale[kept]
        )
        return MixedLogitModel(space, self.mixing(columns), prior, full.attribute_scale[columns])

    def mixing(self, columns: list[int]) -> Mixing:
        """The maps of the kept coefficients in a model whose columns are at ``columns`` of the full one."""
        position = self.full.mixing.scale_position
        names = [self.full.mixing.families[i].name for i in self.kept]
        shifts = self.full.mixing.shifts
        mine = None if shifts is None else shifts.without(self.kept)
        return Mixing(names, None if position is None else columns.index(position), mine, self._varying(columns))

    def _varying(self, columns: list[int]) -> SituationDeviations | None:
        """Deviations between situations at the places of the model; no dropped taste, which is not normal, has one."""
        varying = self.full.mixing.varying
        if varying is None:
            return None
        places = (varying.deviations, varying.coefficients)
        return SituationDeviations(*(tuple(map(columns.index, part)) for part in places))

    def people(self, people: People, columns: list[int] | None = None) -> People:
        """The people without these columns, or with the columns of another model."""
        return replace(people, panels=select_columns(people.panels, self.columns if columns is None else columns))

    def embed(self, population: PopulationParameters) -> PopulationParameters:
        """Parameters (*s) of the full model whose dropped tastes are next to zero for all people."""
        kept, lead = self.kept, population.location.shape[:-1]
        location, scale = self._negligible_tastes()
        tril = torch.diag(scale).expand(*lead, -1, -1).clone()
        location = location.expand(*lead, -1).clone()
        location[..., kept] = population.location
        rows, columns = torch.tensor(kept, dtype=torch.int64)[:, None], torch.tensor(kept, dtype=torch.int64)
        tril[..., rows, columns] = population.scale_tril
        return PopulationParameters(population.fixed, location, tril)

    def _negligible_tastes(self) -> tuple[Tensor, Tensor]:
        """Locations and scales (k,) of tastes next to zero, by families that reach it."""
        unit = self.full.attribute_scale[self.full.space.n_fixed :]
        small = _NEGLIGIBLE_TASTE / unit
        linear = torch.tensor([family.units == "linear" for family in self.full.mixing.families])
        location = torch.where(linear, torch.zeros_like(small), small.log())
        return location, torch.where(linear, small, torch.full_like(small, _NARROW))

    def embed_fit(self, fit: Fit) -> Fit:
        """The fit of the full model, dropped tastes held next to zero, their errors void."""
        space, labels = self.full.space, tuple(self.full.space.labels)
        part = self.model.space
        population = self.embed(part.constrain(fit.samples.unconstrained))
        samples = Samples(space.unconstrain(population), space.report(population), labels, fit.samples.kind)
        covariance = None
        void = tuple(label for label in labels if label not in fit.samples.labels)
        if fit.covariance is not None:
            places = torch.tensor([labels.index(label) for label in fit.samples.labels], dtype=torch.int64)
            covariance = fit.covariance.new_full((space.size, space.size), math.nan)
            covariance[places[:, None], places] = fit.covariance
        return replace(
            fit,
            samples=samples,
            center=self.embed(fit.center),
            tastes=ReducedTastes(self, fit.tastes),
            covariance=covariance,
            chains=None if fit.chains is None else self._embed_report(fit.chains, fit.samples.labels),
            states=None if fit.states is None else self._embed_states(fit.states),
            void=(*fit.void, *void),
        )

    def _embed_report(self, reported: Tensor, labels: tuple[str, ...]) -> Tensor:
        """Reported parameters (..., D) of the full model, of those of the part in the order of its labels."""
        space = self.full.space
        like = self.embed(self.model.space.constrain(torch.zeros(self.model.space.size, dtype=reported.dtype)))
        full = space.report(like).expand(*reported.shape[:-1], -1).to(reported).clone()
        full[..., [space.labels.index(label) for label in labels]] = reported
        return full

    def _embed_states(self, states: TasteStates) -> TasteStates:
        mean, deviation, tastes = (self.insert_zeros(x) for x in (states.mean, states.deviation, states.tastes))
        return TasteStates(mean, deviation, states.fixed, tastes)

    def insert_zeros(self, tastes: Tensor) -> Tensor:
        """Tastes (..., k) of the full model, zero where they were dropped."""
        full = tastes.new_zeros(*tastes.shape[:-1], self.full.space.n_random)
        full[..., self.kept] = tastes
        return full


@dataclass(frozen=True)
class ReducedTastes:
    """Tastes of a model some of whose random coefficients are held at zero: a `TasteSampler` of the full model."""

    reduction: Reduction
    inner: TasteSampler

    @property
    def draws(self) -> object:
        """Draws of a simulated likelihood."""
        return self.inner.draws  # type: ignore[attr-defined]

    def _select(self, panel: PanelSource) -> PanelSource:
        return select_columns(panel, self.reduction.columns)

    def _given(self, population: PopulationParameters) -> PopulationParameters:
        kept = self.reduction.kept
        return PopulationParameters(population.fixed, population.location[kept], population.scale_tril[kept][:, kept])

    def moments(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of each person's random tastes, (n, k) each."""
        mean, deviation = self.inner.moments(self._select(panel), self._given(population), seed, places)
        return self.reduction.insert_zeros(mean), self.reduction.insert_zeros(deviation)

    def averaged_moments(
        self,
        panel: PanelSource,
        populations: Sequence[PopulationParameters],
        anchor: PopulationParameters,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation (n, k) over several population values."""
        parts = [self._given(population) for population in populations]
        found = self.inner.averaged_moments(self._select(panel), parts, self._given(anchor), places)
        return self.reduction.insert_zeros(found[0]), self.reduction.insert_zeros(found[1])

    def weigh(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> Iterator[TasteDraws]:
        """Weighted draws of people's random tastes, chunk after chunk of people."""
        for drawn in self.inner.weigh(self._select(panel), self._given(population), seed, places):
            yield WeightedTastes(drawn.part, drawn.weights, self.reduction.insert_zeros(drawn.tastes.mT).mT)

    def sample(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's random tastes, (n_samples, n, k)."""
        return self.reduction.insert_zeros(
            self.inner.sample(self._select(panel), self._given(population), n, seed, places)
        )

    def sample_parameters(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's fixed coefficients and random tastes, (n_samples, n, f + k)."""
        return join_fixed(population, self.sample(panel, population, n, seed, places))


def refuse_shifts(model: MixedLogitModel, wrong: tuple[int, ...]) -> None:
    """Check that covariates shift no taste of the wrong sign, given the places of these.

    Raises
    ------
    SpecificationError
        If one is.
    """
    shifts = model.mixing.shifts
    names = [model.space.random[i] for i in wrong if shifts is not None and i in shifts.tastes]
    if names:
        raise SpecificationError(
            f"mean_shifters: the effects of {names} have the other sign than their distributions allow, so that their "
            "tastes are zero for all people and covariates have nothing to shift. Take 'normal', or "
            "'negative_lognormal' for 'lognormal' and the reverse."
        )


def without_effects(model: MixedLogitModel) -> MixedLogitModel:
    """The model at average covariates: effects on latent normals are held at zero."""
    shifts = model.mixing.shifts
    if shifts is None:
        return model
    held = tuple(sorted([*model.space.held, *((effect, 0.0) for effect in shifts.effects)]))
    names = [family.name for family in model.mixing.families]
    mixing = Mixing(names, model.mixing.scale_position, None, model.mixing.varying)
    return replace(model, space=replace(model.space, held=held), mixing=mixing)
