"""The marginal likelihood of a panel: one evaluator for every engine, table and diagnostic.

A pass visits people in chunks: Newton steps from each person's last mode, importance draws, weights, and sums in
float64. Its memory is O(chunk x situations x alternatives x draws).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mxlogit.choices.chunks import cells_at_once, people_at_once
from mxlogit.draws.importance import BaseDraws, DrawScheme, log_standard_normal
from mxlogit.execution.checkpoint import Journal
from mxlogit.execution.people import People, places_inside
from mxlogit.integration.importance import WeightedDraws, draw_utilities, draw_whitened, weigh_draws
from mxlogit.integration.laplace import Flow, LocalFactor, follow, polish
from mxlogit.integration.louis import louis_information
from mxlogit.integration.pathwise import pathwise_information
from mxlogit.integration.proposals import Proposal, Window, affordable
from mxlogit.integration.scores import score_people
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.sums import DrawsEffect, LikelihoodSums, PassResult
from mxlogit.integration.variational import refine_gaussian
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import Scratch
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters

# Chunks within which people are grouped by the length of their panels; chosen by hand.
_CHUNKS_IN_A_WINDOW = 8
# Most base draws (floats, all people) kept between passes, 32 MB in single precision: making them is a tenth of a pass.
_KEPT_NUMBERS = 8_000_000
_VARIATIONAL_POINTS = 16  # per person, for the expectations of the variational steps; chosen by hand
_VARIATIONAL_STREAM = 77  # random stream of these points


class MarginalLikelihood:
    """The marginal likelihood of all people; sums run over the people of all processes.

    Parameters
    ----------
    people : People
        People with columns in the order fixed, random.
    space : ParameterSpace
    mixing : Mixing
    seed : int
        Root seed of all draws.
    name : str
        Name of these people in the journal.
    journal : Journal, optional
        Record of completed passes.
    keys : Tensor, int64, shape (n,), optional
        Seeds of each person's quasi-random draws; by default draws are pseudo-random, seeded by global index.

    Attributes
    ----------
    modes : Tensor, shape (n, k)
        Last whitened mode of each person of this process: the warm start of the next pass.
    flow : Flow or None
        Flow on the local factors, which also sets the kind of base draws; None at first.
    """

    def __init__(
        self,
        people: People,
        space: ParameterSpace,
        mixing: Mixing,
        seed: int,
        name: str = "all",
        journal: Journal | None = None,
        keys: Tensor | None = None,
    ) -> None:
        self.people, self.space, self.mixing, self.seed = people, space, mixing, seed
        self.name, self.journal = name, Journal() if journal is None else journal
        self.keys = keys
        self.modes = people.like.new_zeros(len(people.panels), space.n_random)
        self.flow: Flow | None = None
        self._scratch = Scratch()
        self._windows: dict[tuple[int, int], Window] = {}
        self._kept_scheme: DrawScheme | None = None

    def take(self, people: Tensor) -> MarginalLikelihood:
        """Return the marginal likelihood of some people (sorted global indices), with their modes."""
        name = f"{self.name}/{len(people)}"
        part = MarginalLikelihood(self.people.take(people), self.space, self.mixing, self.seed, name, self.journal)
        part.modes, part.flow = self.modes[self.people.local_indices(people).to(self.modes.device)], self.flow
        return part

    def chunk_size(self, draws: int) -> int:
        """Number of people per chunk; see `mxlogit.choices.chunks`."""
        panels = self.people.panels
        return people_at_once(panels.n_rows, max(draws, panels.n_columns), device=self.people.like.device)

    def _cells(self) -> int:
        """Largest rows x draws of a chunk."""
        return cells_at_once(device=self.people.like.device)

    def _row_limit(self, draws: int, cells: int) -> int:
        """Largest number of rows of a chunk."""
        return cells // max(draws, self.people.panels.n_columns)

    def _scheme(self, integration: IntegrationSettings) -> DrawScheme:
        degrees_of_freedom, defensive = integration.degrees_of_freedom, integration.defensive
        if integration.from_population:
            return DrawScheme.net((self.seed, integration.stream), integration.draws, self.space.n_random)
        if self.flow is not None:
            degrees_of_freedom, defensive = self.flow.degrees_of_freedom, self.flow.defensive
        return DrawScheme(
            (self.seed, integration.stream), integration.draws, self.space.n_random, degrees_of_freedom, defensive
        )

    def _window(self, start: int, count: int, scheme: DrawScheme) -> Window:
        """The window of a range of people; it keeps its draws while the scheme is unchanged, if they fit in memory."""
        first = self.people.first + start
        if self.keys is not None:
            return Window(first, count, keys=self.keys[start : start + count])
        if len(self.modes) * scheme.dimensions * scheme.draws > _KEPT_NUMBERS:
            return Window(first, count)
        if scheme != self._kept_scheme:
            self._windows, self._kept_scheme = {}, scheme
        return self._windows.setdefault((first, count), Window(first, count, keeps=True))

    @torch.no_grad()
    def propose(
        self,
        population: PopulationParameters,
        integration: IntegrationSettings,
        *,
        remember: bool = True,
        size: int | None = None,
        cells: int | None = None,
    ) -> Iterator[Proposal]:
        """Build the proposals, chunk after chunk (of ``size`` people, or of ``cells`` rows x draws)."""
        local, scheme = population.to(self.people.like), self._scheme(integration)
        if cells is None:
            size, cells = size or self.chunk_size(integration.draws), self._cells()
        size = size or max(1, cells // integration.draws)
        for part, panels in self.people.panels.chunks(_CHUNKS_IN_A_WINDOW * size):
            window = self._window(part.start, len(panels), scheme)
            for group, panel in panels.pieces(self._row_limit(integration.draws, cells), size):
                place = places_inside(part.start, group)
                factor = self._local_factor(place, panel, local, integration)
                if remember and not integration.from_population:
                    self.modes[place] = factor.mean
                base = window.points(affordable(scheme, panel, cells), group, factor.mean)
                proposal = Proposal(
                    place,
                    panel,
                    factor,
                    base,
                    window,
                    group,
                    integration.variational_steps,
                    cells,
                    integration.pathwise,
                    integration.from_population,
                )
                yield self._warp(self._refine(proposal, local), local)

    def _local_factor(
        self,
        place: slice | Tensor,
        panel: PanelDifferences,
        population: PopulationParameters,
        integration: IntegrationSettings,
    ) -> LocalFactor:
        """The Gaussian from which the tastes of some people are drawn, before variational steps and flows."""
        start = self.modes[place]
        if integration.from_population:
            return LocalFactor.of_population(start)
        return polish(start, population, panel, self.mixing, integration.newton_steps, integration.newton_tolerance)

    @torch.no_grad()
    def follow(self, population: PopulationParameters, proposals: Iterable[Proposal]) -> Iterator[Proposal]:
        """Move proposals to a nearby population value: modes by one Newton step, base draws and flows unchanged."""
        local = population.to(self.people.like)
        for proposal in proposals:
            if proposal.from_population:
                yield proposal
                continue
            factor = follow(proposal.factor.mean, local, proposal.panel, self.mixing)
            moved = self._refine(replace(proposal, factor=factor), local)
            yield replace(moved, factor=replace(moved.factor, warp=proposal.factor.warp))

    def _warp(self, p: Proposal, population: PopulationParameters) -> Proposal:
        """Attach the flow, if there is one, to a proposal's factor."""
        if self.flow is None or p.from_population:
            return p
        warp = self.flow.attach(p.factor, population, p.panel, self.mixing)
        return replace(p, factor=replace(p.factor, warp=warp))

    def _refine(self, p: Proposal, population: PopulationParameters) -> Proposal:
        """Take the variational steps of a proposal whose factor is at the mode."""
        if p.variational_steps == 0 or p.from_population or self.space.n_random == 0:
            return p
        scheme = DrawScheme((self.seed, _VARIATIONAL_STREAM), _VARIATIONAL_POINTS, self.space.n_random, None, False)
        points = p.points(scheme).points
        return replace(
            p,
            factor=refine_gaussian(
                p.factor, points, population, p.panel, self.mixing, p.variational_steps, self._scratch
            ),
        )

    @torch.no_grad()
    def weigh(
        self, population: PopulationParameters, proposals: Iterable[Proposal]
    ) -> Iterator[tuple[Proposal, WeightedDraws]]:
        """Weigh the draws of proposals at ``population``."""
        local = population.to(self.people.like)
        for p in proposals:
            yield p, weigh_draws(p.factor, p.base, local, p.panel, self.mixing, self._scratch)

    def log_prob_people(self, population: PopulationParameters, proposals: Iterable[Proposal]) -> Tensor:
        """Jackknifed log p(y_n) of each person of this process, shape (n,), float64, without case weights."""
        result = self.people.like.new_zeros(len(self.people.panels), dtype=torch.float64)
        for proposal, drawn in self.weigh(population, proposals):
            result[proposal.part] = drawn.log_marginal.double()
        return result

    def _journal(
        self, name: str, population: PopulationParameters, integration: IntegrationSettings, compute: Callable[[], Any]
    ) -> list[Tensor]:
        """Sums of a pass over the people of all processes, computed or read from the journal."""
        at = self.space.unconstrain(population).cpu()
        paths = " along paths" if integration.pathwise else ""
        paths += " from the population" if integration.from_population else ""
        key = f"{self.name} {name}{paths} with {integration.draws} draws, key {integration.stream}"
        return self.journal.run(key, at, self, lambda: self.people.team.all_reduce_sum(*compute()))

    @torch.no_grad()
    def score_people(self, population: PopulationParameters, integration: IntegrationSettings) -> tuple[Tensor, Tensor]:
        """Log p(y_n) (n,) of each person of this process and its score (n, D) in relative coordinates, float64."""
        n, local = len(self.people.panels), population.to(self.people.like)
        log_prob, scores = self._zeros(n), self._zeros(n, self.space.size)
        for p in self.propose(population, integration):
            drawn, found = self._score_people(p, p.base, local)
            log_prob[p.part], scores[p.part] = drawn.log_marginal.double(), found.double()
        return log_prob, scores

    def value_pass(
        self, population: PopulationParameters, integration: IntegrationSettings, *, remember: bool = True
    ) -> LikelihoodSums:
        """Log likelihood without derivatives, from one pass."""

        def compute() -> tuple[Tensor]:
            return (self._sum_values(population, self.propose(population, integration, remember=remember)),)

        return LikelihoodSums.finish(self.people.weight, *self._journal("value", population, integration, compute))

    def value(self, population: PopulationParameters, proposals: Iterable[Proposal]) -> LikelihoodSums:
        """Log likelihood without derivatives, from given proposals; not journaled."""
        sums = self.people.team.all_reduce_sum(self._sum_values(population, proposals))
        return LikelihoodSums.finish(self.people.weight, *sums)

    def _sum_values(self, population: PopulationParameters, proposals: Iterable[Proposal]) -> Tensor:
        """Sums of `LikelihoodSums.of_chunk` over the people of this process."""
        sums = self._zeros(4)
        for proposal, drawn in self.weigh(population, proposals):
            sums += LikelihoodSums.of_chunk(drawn, proposal.panel.weights)
        return sums

    def score_pass(
        self, population: PopulationParameters, integration: IntegrationSettings, *, remember: bool = True
    ) -> PassResult:
        """Log likelihood, score and centred outer product in relative coordinates, from one pass."""

        def compute() -> tuple[Tensor, Tensor, Tensor]:
            return self._sum_scores(population, self.propose(population, integration, remember=remember))

        return PassResult.finish(self.people.weight, *self._journal("score", population, integration, compute))

    def score(self, population: PopulationParameters, proposals: Iterable[Proposal]) -> PassResult:
        """Log likelihood, score and outer product, from given proposals; not journaled."""
        return PassResult.finish(
            self.people.weight, *self.people.team.all_reduce_sum(*self._sum_scores(population, proposals))
        )

    @torch.no_grad()
    def _sum_scores(
        self, population: PopulationParameters, proposals: Iterable[Proposal]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the people of this process: `LikelihoodSums.of_chunk`, scores and their outer products."""
        size, local = self.space.size, population.to(self.people.like)
        sums, score, outer = self._zeros(4), self._zeros(size), self._zeros(size, size)
        for p in proposals:
            drawn, scores = self._score_people(p, p.base, local)
            weights, scores = p.panel.weights.double(), scores.double()
            sums += LikelihoodSums.of_chunk(drawn, weights)
            score += scores.T @ weights
            outer += scores.T @ (weights[:, None] * scores)
        return sums, score, outer

    def _score_people(
        self, p: Proposal, base: BaseDraws, population: PopulationParameters
    ) -> tuple[WeightedDraws, Tensor]:
        """Weighted draws and scores (n, D) of a proposal's people on given base draws."""
        drawn = draw_utilities(p.factor, base, population, p.panel, self.mixing, self._scratch)
        follow = not p.from_population
        return score_people(drawn, population, p.panel, self.mixing, self.space, pathwise=p.pathwise, follow=follow)

    def effect_of_draws(
        self, population: PopulationParameters, integration: IntegrationSettings, times: int
    ) -> DrawsEffect:
        """Effect of ``times`` as many draws on the score, from ``times`` groups of the settings' number of draws.

        The score on all groups less the mean of the scores on one group has little noise, since terms linear in the
        weights cancel.
        """

        def compute() -> tuple[Tensor, ...]:
            return self._sum_effects(population, integration, times)

        return DrawsEffect(*self._journal(f"effect of {times} times", population, integration, compute))

    @torch.no_grad()
    def _sum_effects(
        self, population: PopulationParameters, integration: IntegrationSettings, times: int
    ) -> tuple[Tensor, ...]:
        size, local = self.space.size, population.to(self.people.like)
        schemes = [self._scheme(replace(integration, stream=integration.stream + 1 + group)) for group in range(times)]
        total, variance, noise = self._zeros(size), self._zeros(size, size), self._zeros(size, size)
        for p in self.propose(population, integration, size=self.chunk_size(times * integration.draws)):
            weights = p.panel.weights.double()[:, None]
            groups = [p.points(scheme) for scheme in schemes]
            scores = [self._score_people(p, base, local)[1].double() for base in (BaseDraws.join(groups), *groups)]
            each = torch.stack(scores[1:])
            change = weights * (scores[0] - each.mean(0))
            apart = (each - each.mean(0)).flatten(0, 1)
            total += change.sum(0)
            variance += change.T @ change
            noise += apart.T @ (weights.repeat(times, 1) * apart) / (times - 1)
        return total, variance, noise

    @torch.no_grad()
    def information(
        self, model: MixedLogitModel, population: PopulationParameters, integration: IntegrationSettings
    ) -> Tensor:
        """Observed information (D, D) in relative coordinates, from one pass.

        `mxlogit.integration.pathwise` applies to smooth mixing maps; `mxlogit.integration.louis` in addition needs maps
        that do not depend on the population parameters.
        """
        local, total = population.to(self.people.like), self._zeros(self.space.size, self.space.size)
        for p in self.propose(population, integration, remember=False, size=self._chunk_of_information(integration)):
            if integration.pathwise:
                total += pathwise_information(model, *self.whitened(p), local, p.panel)
            else:
                drawn = draw_utilities(p.factor, p.base, local, p.panel, self.mixing, self._scratch)
                total += louis_information(drawn, local, p.panel, self.mixing, self.space)
        return self.people.team.all_reduce_sum(total)[0]

    def whitened(self, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """Whitened tastes (n, k, s) drawn from a proposal, and log density ratios (n, s) of prior to proposal."""
        xi, log_q, _ = draw_whitened(proposal.factor, proposal.base)
        return xi, log_standard_normal(xi.square().sum(1), xi.shape[1]) - log_q

    def _chunk_of_information(self, integration: IntegrationSettings) -> int:
        """Number of people per chunk; the pathwise information also stores products of draws."""
        k = self.space.n_random if integration.pathwise else 0
        products = (k + 1) * (k + 2) // (2 * max(1, self.people.panels.n_rows))
        return self.chunk_size(max(1, products) * integration.draws)

    def _zeros(self, *shape: int) -> Tensor:
        return self.people.like.new_zeros(shape, dtype=torch.float64)
