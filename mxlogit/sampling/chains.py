"""States of several Markov chains, and the likelihood of all people's choices at all states at once.

People are the last axis of whitened tastes: (chains, k, n). With people as the axis of draws, the derivatives of
`mxlogit.integration.simulated_block` apply to chains as they do to the simulated likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mxlogit.choices.chunks import people_at_once
from mxlogit.execution.people import dense_pieces
from mxlogit.integration.drawn_tastes import DrawnTastes, draw_tastes
from mxlogit.integration.simulated_block import evaluate_block, score_coordinates
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import Scratch, compute_odds
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.wtp_space import pull_back, to_coefficients

# Share of the usual cells of a chunk: a step holds the present and the proposed tastes; chosen by hand.
_SHARE = 0.5


@dataclass(frozen=True)
class State:
    """Current states of the chains.

    Attributes
    ----------
    population : PopulationParameters
        Population parameters with a leading axis of chains, float64.
    xi : Tensor, shape (chains, k, n)
        Whitened tastes, in the dtype of the panel.
    log_prob : Tensor, shape (chains, n)
        Log probability of each person's choices.
    """

    population: PopulationParameters
    xi: Tensor
    log_prob: Tensor

    def latents(self) -> Tensor:
        """Latent normals zeta + L xi, float64, shape (chains, k, n)."""
        return self.population.latent(self.xi.double())

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, which `of` reads."""
        population = self.population
        return {
            "fixed": population.fixed,
            "location": population.location,
            "scale_tril": population.scale_tril,
            "xi": self.xi,
            "log_prob": self.log_prob,
        }

    @classmethod
    def of(cls, tensors: dict[str, Tensor], like: Tensor) -> State:
        """Restore a state from the tensors of `tensors`, on the device of ``like``."""
        parts = {name: tensor.to(like.device) for name, tensor in tensors.items()}
        population = PopulationParameters(parts["fixed"], parts["location"], parts["scale_tril"])
        return cls(population, parts["xi"], parts["log_prob"])


def choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of ``new`` if accepted, of ``old`` otherwise; ``accepted`` has the leading axes of both."""
    return torch.where(accepted.reshape(*accepted.shape, *([1] * (new.dim() - accepted.dim()))), new, old)


def choose_population(accepted: Tensor, new: PopulationParameters, old: PopulationParameters) -> PopulationParameters:
    """Population parameters of ``new`` for chains (chains,) that accepted, of ``old`` otherwise."""
    return PopulationParameters(
        choose(accepted, new.fixed, old.fixed),
        choose(accepted, new.location, old.location),
        choose(accepted, new.scale_tril, old.scale_tril),
    )


class Noise:
    """Random numbers, one stream per chain, so that a chain does not depend on the number of chains."""

    def __init__(self, seed: int, chains: int) -> None:
        self.streams = [np.random.default_rng((seed, chain)) for chain in range(chains)]

    def position(self) -> list[dict[str, object]]:
        """Positions of the streams, JSON-serialisable."""
        return [dict(stream.bit_generator.state) for stream in self.streams]

    def seek(self, position: list[dict[str, object]]) -> None:
        """Set the streams to given positions."""
        for stream, place in zip(self.streams, position, strict=True):
            stream.bit_generator.state = place

    def normal(self, *shape: int, like: Tensor) -> Tensor:
        """Standard normals, shape (chains, *shape)."""
        kind = np.float32 if like.dtype == torch.float32 else np.float64
        return self._stack([stream.standard_normal(shape, dtype=kind) for stream in self.streams], like)

    def uniform(self, *shape: int, like: Tensor) -> Tensor:
        """Uniforms on [0, 1), shape (chains, *shape)."""
        return self._stack([stream.random(shape) for stream in self.streams], like)

    def gamma(self, shape: Tensor | Sequence[float], like: Tensor) -> Tensor:
        """Gamma variates of unit rate with given shape parameters (*s), shape (chains, *s)."""
        parameter = np.asarray(shape, dtype=np.float64)
        return self._stack([stream.standard_gamma(parameter) for stream in self.streams], like)

    @staticmethod
    def _stack(parts: list[np.ndarray], like: Tensor) -> Tensor:
        return torch.from_numpy(np.stack(parts)).to(like)


def loads_in_chains(model: MixedLogitModel, panel: Panels) -> Tensor | None:
    """Covariates (1, e, n) of the effects on latent normals of the people of a panel; None without such effects."""
    if model.mixing.shifts is None:
        return None
    assert panel.covariates is not None
    return model.mixing.shifts.loads_of_chains(panel.covariates, panel.like)


class ChainLikelihood:
    """Likelihood of one panel at the states of all chains.

    Parameters
    ----------
    model : MixedLogitModel
    panel : PanelDifferences or RaggedPanels
        Panel in which every person has weight one.
    """

    def __init__(self, model: MixedLogitModel, panel: Panels) -> None:
        self.model, self.panel = model, panel
        self._scratch = Scratch()
        self.loads = loads_in_chains(model, panel)

    def __len__(self) -> int:
        return len(self.panel)

    def chunk_size(self, chains: int) -> int:
        """Number of people per chunk."""
        width = max(chains, self.panel.n_columns)
        return people_at_once(self.panel.n_rows, width, _SHARE, self.panel.values.device)

    def log_prob(self, population: PopulationParameters, xi: Tensor) -> Tensor:
        """Log probability of each person's choices, (chains, n), at whitened tastes (chains, k, n)."""
        local, result = population.to(xi), xi.new_empty(len(xi), len(self))
        for part, panel in dense_pieces(self.panel, self.chunk_size(len(xi))):
            drawn = self._draw(local, xi, part)
            result[:, part] = compute_odds(self._utility(drawn, panel), panel).log_prob.mT
        return result

    def scores(self, population: PopulationParameters, xi: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities (chains, n) as in `log_prob`, and the gradient (chains, D) of their sum, float64.

        Coordinates are fixed coefficients, locations and the free entries of L.
        """
        local, log_prob, space = population.to(xi), xi.new_empty(len(xi), len(self)), self.model.space
        total = xi.new_zeros(len(xi), self.model.space.size, dtype=torch.float64)
        for part, panel in dense_pieces(self.panel, self.chunk_size(len(xi))):
            drawn = self._draw(local, xi, part)
            odds = compute_odds(self._utility(drawn, panel), panel)
            gradient = torch.bmm(panel.values.mT, odds.probabilities()).neg_().permute(2, 1, 0)
            pulled = pull_back(gradient, drawn.parameters, self.model.mixing.scale_position)
            total += space.drop_held(score_coordinates(self.model, local, drawn, pulled).double())
            log_prob[:, part] = odds.log_prob.mT
        return log_prob, total

    def information(self, population: PopulationParameters, xi: Tensor) -> Tensor:
        """Minus the Hessian (D, D) of the summed log probability at the state of one chain (tastes (k, n)), float64."""
        size, local = self.model.space.size, population.to(xi)
        space, total = self.model.space, xi.new_zeros(size, size, dtype=torch.float64)
        for part, panel in dense_pieces(self.panel, people_at_once(self.panel.n_rows + size, size)):
            block = evaluate_block(self.model, local, panel, xi[:, part].T[..., None], curvature=True)
            assert block.second is not None
            score = space.drop_held(block.score.double())
            total += score.T @ score - space.drop_held(block.second.double().sum(0), 0, 1)
        return total

    def _draw(self, population: PopulationParameters, xi: Tensor, part: slice | Tensor) -> DrawnTastes:
        """Parameters of some people at the states of all chains."""
        loads = None if self.loads is None else self.loads[..., part]
        return draw_tastes(self.model, population, xi[..., part], loads)

    def _utility(self, drawn: DrawnTastes, panel: PanelDifferences) -> Tensor:
        """Utility differences (people, rows, chains)."""
        coefficients = to_coefficients(drawn.parameters, self.model.mixing.scale_position, dim=1)
        # A batched product with a permuted view would run person by person.
        coefficients = coefficients.permute(2, 1, 0).contiguous()
        shape = (*panel.values.shape[:2], coefficients.shape[-1])
        return torch.bmm(panel.values, coefficients, out=self._scratch.take(shape, panel.values))


def with_people(state: State, xi: Tensor, log_prob: Tensor, accepted: Tensor) -> State:
    """Return the state with the new tastes of people (chains, n) whose proposals were accepted."""
    return replace(
        state,
        xi=torch.where(accepted[:, None], xi, state.xi),
        log_prob=torch.where(accepted, log_prob, state.log_prob),
    )
