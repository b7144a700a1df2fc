r"""The simulated likelihood of a panel on fixed draws: value, score and exact Hessian.

.. math:: SLL(\phi) = \sum_n w_n \log \tfrac1R \sum_r P(y_n | \alpha, g(\zeta + L z_{nr}))

Coordinates :math:`\phi` are the fixed coefficients, the locations and the free entries of L, whose diagonal
may have either sign: with draws that are not symmetric the sign matters (Train 2009, chapter 10).

People are evaluated in chunks, and the draws of a person that exceed a chunk in blocks. Memory grows neither with
people nor with draws, except for draws kept between passes within a fixed budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.choices.chunks import cells_at_once, people_at_once
from mxlogit.draws.simulation import PersonDraws
from mxlogit.execution.people import on_cpu, places_inside
from mxlogit.integration.drawn_tastes import draw_tastes, loads_of
from mxlogit.integration.simulated_block import evaluate_block, merge_blocks, sum_second, weigh_block
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters

# Share of the usual cells of a chunk: values, scores and their products are held together. Measured: a million are
# faster than fewer that stay in cache.
_SHARE = 0.25
# Largest size of draws kept between passes, in bytes; larger sets are generated again in each pass.
_KEPT_BYTES = 300_000_000
# Half-width of the central difference of a score with jumps (kinked maps), in conditional standard errors of the
# coordinate, or in standard deviations of the taste if smaller; chosen by hand.
_KINK_STEP = 0.2


@dataclass(frozen=True)
class SimulatedScores:
    """Value and derivatives on fixed draws, float64 on the CPU.

    Attributes
    ----------
    log_prob : Tensor, shape (n,)
        Simulated log probability of each person's choices, not weighted.
    scores : Tensor, shape (n, D)
        Its gradient.
    hessian : Tensor or None, shape (D, D)
        Hessian of the weighted sum over people; None if not requested.
    """

    log_prob: Tensor
    scores: Tensor
    hessian: Tensor | None = None


class SimulatedLikelihood:
    """Simulated likelihood of one panel.

    Parameters
    ----------
    model : MixedLogitModel
    panel : PanelDifferences or RaggedPanels
        Panel of the people, in the order of their blocks of draws.
    draws : PersonDraws
    share : SimulatedLikelihood, optional
        Another likelihood on the same draws, possibly in another precision, whose kept draws are reused.
    first : int, optional
        Number of draws per person to use; all by default.
    keep : bool
        Whether to keep draws within the budget between passes; not worth it for a single pass.
    places : Tensor, int64, shape (n,), optional
        Number of each person's block of draws, with ``keep=False``; consecutive by default.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        panel: Panels,
        draws: PersonDraws,
        *,
        share: SimulatedLikelihood | None = None,
        first: int | None = None,
        keep: bool = True,
        places: Tensor | None = None,
    ) -> None:
        self.model, self.panel, self.draws = model, panel, draws
        self.n_draws, self.places = first or draws.n_draws, places
        self.weights = panel.weights.double().cpu()
        self.passes = 0.0
        self._kept: Tensor | None = share._kept if share is not None else self._keep() if keep else None

    def _keep(self) -> Tensor | None:
        """All draws (n, k, r) in the panel's type, or None if they exceed the budget."""
        shape = (len(self.panel), self.draws.dimensions, self.draws.n_draws)
        kept_size = math.prod(shape) * self.panel.values.element_size()
        if kept_size > _KEPT_BYTES:
            return None
        kept = self.panel.values.new_empty(shape)
        step = people_at_once(shape[1], shape[2])
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            kept[start:stop] = self.draws.normals(start, stop).to(kept)
        return kept

    @property
    def size(self) -> int:
        """Number D of coordinates."""
        return self.model.space.size

    def population(self, vector: Tensor) -> PopulationParameters:
        """Population parameters at coordinates (*s, D), with the signs of the diagonal of L unchanged."""
        space = self.model.space
        tril = space.triangle_matrix(vector[..., space.n_means :])
        return PopulationParameters(*space.insert_held(vector[..., : space.n_means]), tril)

    def coordinates(self, population: PopulationParameters) -> Tensor:
        """Coordinates (D,) of a population."""
        rows, columns = self.model.space.triangle
        parts = population.fixed, population.location, population.scale_tril[rows, columns]
        return self.model.space.drop_held(torch.cat(parts))

    @torch.no_grad()
    def evaluate(self, vector: Tensor, *, curvature: bool = False) -> SimulatedScores:
        """Value, each person's score and, on request, the Hessian: exact, but by differences for kinked maps.

        Parameters
        ----------
        vector : Tensor, shape (D,)
        curvature : bool

        Returns
        -------
        SimulatedScores
        """
        local = self.population(vector).to(self.panel.values)
        n, size, space = len(self.panel), self.size, self.model.space
        log_prob = torch.empty(n, dtype=torch.float64)
        scores = torch.empty(n, size, dtype=torch.float64)
        hessian = torch.zeros(size, size, dtype=torch.float64) if curvature else None
        smooth = curvature and not self.model.mixing.is_kinked
        for part, panel, normals in self._pieces():
            step = max(1, cells_at_once(_SHARE) // max(1, panel.n_rows))
            draws = normals.split(step, dim=-1)
            blocks = [evaluate_block(self.model, local, panel, z, curvature=smooth) for z in draws]
            merged = merge_blocks(blocks)
            log_prob[part] = merged.log_sum.double().cpu() - math.log(self.n_draws)
            scores[part] = space.drop_held(merged.score.double().cpu())
            if hessian is not None and merged.second is not None:
                second = space.drop_held(merged.second.double().cpu(), 1, 2)
                hessian += sum_second(second, scores[part], self.weights[part])
        self.passes += self.n_draws / self.draws.n_draws
        if curvature and not smooth:
            hessian = self._differenced_hessian(vector, scores)
        return SimulatedScores(log_prob, scores, hessian)

    def _differenced_hessian(self, vector: Tensor, scores: Tensor) -> Tensor:
        """Hessian (D, D) by central differences of the score, wide enough to average over its jumps."""
        space, scale = self.model.space, self.population(vector).scale
        widest = torch.cat([torch.full((space.n_fixed,), math.inf), scale, scale[space.triangle[0]]])
        widest = space.drop_held(widest)
        steps = _KINK_STEP * torch.minimum((self.weights @ scores.square()).clamp(min=1e-300).rsqrt(), widest)
        columns = []
        for i, move in enumerate(torch.diag(steps)):
            up, down = self.evaluate(vector + move), self.evaluate(vector - move)
            columns.append((up.scores - down.scores).T @ self.weights / (2.0 * steps[i]))
        matrix = torch.stack(columns, -1)
        return 0.5 * (matrix + matrix.T)

    def _pieces(self) -> Iterator[tuple[slice | Tensor, PanelDifferences, Tensor]]:
        """Indices, panel and draws (m, k, r) of each chunk of people."""
        rows = max(1, cells_at_once(_SHARE) // self.n_draws)
        size = people_at_once(self.panel.n_rows, self.n_draws, _SHARE)
        for window, part in self.panel.chunks(size):
            normals = self._normals(window)
            for group, piece in part.pieces(rows, size):
                inside = normals[group]
                yield on_cpu(places_inside(window.start, group)), piece, inside

    def _normals(self, part: slice) -> Tensor:
        """Draws of a range of people, (n, k, r)."""
        if self._kept is not None:
            made = self._kept[part]
        elif self.places is not None:
            made = self.draws.normals_of(self.places[part])
        else:
            made = self.draws.normals(part.start, part.stop)
        return made[..., : self.n_draws].to(self.panel.values)

    def thinned(self, n_draws: int) -> SimulatedLikelihood:
        """Return the likelihood on the first ``n_draws`` draws of each person."""
        return SimulatedLikelihood(self.model, self.panel, self.draws, share=self, first=n_draws)

    def value(self, vector: Tensor) -> float:
        """Simulated log likelihood."""
        return float(self.evaluate(vector).log_prob @ self.weights)

    @torch.no_grad()
    def weigh_tastes(self, population: PopulationParameters) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
        """Indices, Bayes weights of the draws (n, r) and tastes (n, k, r) of each chunk of people, float64."""
        local = population.to(self.panel.values)
        for part, panel, normals in self._pieces():
            drawn = draw_tastes(self.model, local, normals, loads_of(self.model, panel))
            weights = weigh_block(self.model, drawn, panel).double().softmax(-1)
            yield part, weights, drawn.parameters[:, local.fixed.shape[0] :].double()
