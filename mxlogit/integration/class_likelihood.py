r"""The likelihood of a latent class model, exact, with the derivatives of Newton's method and of the EM algorithm.

With :math:`P_{nc}` the probability of person n's choices at the tastes of class c, :math:`\pi_{nc}` that of membership
and :math:`r_{nc} \propto \pi_{nc} P_{nc}`, the score is :math:`\sum_c r_{nc} s_{nc}`, where
:math:`s_{nc} = \nabla \log \pi_{nc} P_{nc}`, and the observed information is the complete-data information less
:math:`\sum_c r_{nc} s_{nc} s_{nc}' - s_n s_n'` (Louis 1982, Journal of the Royal Statistical Society B 44).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.choices.chunks import PEOPLE_AT_ONCE, cells_at_once
from mxlogit.execution.people import dense_pieces, places_inside
from mxlogit.integration.membership import member_information, member_scores, regressors
from mxlogit.model.classes import ClassPopulation, ClassSpace
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import compute_odds, panel_derivatives
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels

# People whose information matrices are in memory at a time.
_PEOPLE_AT_ONCE = min(PEOPLE_AT_ONCE, 4_096)


@dataclass(frozen=True)
class ClassEvaluation:
    """Log likelihood at one value of the parameters, with derivatives in the unconstrained vector (float64).

    Attributes
    ----------
    log_prob : Tensor, shape (n,)
        Log probability of each person's choices, not weighted.
    scores : Tensor, shape (n, D)
    information : Tensor, shape (D, D)
        Observed information: minus the Hessian of the weighted log likelihood.
    complete : Tensor, shape (D, D)
        Information if memberships were observed, positive semidefinite up to the curvature of lognormal tastes.
    weights : Tensor, shape (n,)
        Weights of the people.
    """

    log_prob: Tensor
    scores: Tensor
    information: Tensor
    complete: Tensor
    weights: Tensor

    @property
    def value(self) -> float:
        """Weighted log likelihood."""
        return float(self.weights @ self.log_prob)

    @property
    def gradient(self) -> Tensor:
        """Gradient (D,) of the weighted log likelihood."""
        return self.weights @ self.scores


class ClassLikelihood:
    """Likelihood of a latent class model of the people of a panel.

    Parameters
    ----------
    model : MixedLogitModel
        Model whose parameter space is a `ClassSpace` without spread.
    panel : PanelDifferences or RaggedPanels
    """

    def __init__(self, model: MixedLogitModel, panel: Panels) -> None:
        assert isinstance(model.space, ClassSpace)
        self.model, self.space, self.panel = model, model.space, panel.to(torch.float64)
        self.weights = self.panel.weights

    @torch.no_grad()
    def log_prob_classes(self, population: ClassPopulation) -> Tensor:
        """Log probabilities (*s, n, C) of people's choices in each class, for population values (*s)."""
        coefficients = population.class_tastes(self.model.mixing)[..., 0, :]
        flat, n = coefficients.flatten(0, -2).T, len(self.panel)
        parts = self.panel.like.new_empty(n, flat.shape[1])
        for place, piece in self._wide_pieces(flat.shape[1]):
            parts[place] = compute_odds(piece.values @ flat, piece).log_prob
        return parts.T.unflatten(0, coefficients.shape[:-1]).movedim(-2, -1)

    def _wide_pieces(self, width: int) -> Iterator[tuple[slice | Tensor, PanelDifferences]]:
        """Pieces of people whose rows times a width fit in memory."""
        for window, part in self.panel.chunks(max(1, len(self.panel))):
            for group, piece in part.pieces(max(1, cells_at_once() // width), len(self.panel)):
                yield places_inside(window.start, group), piece

    def log_prob_people(self, population: ClassPopulation) -> Tensor:
        """Log probabilities (*s, n) of people's choices, memberships summed out."""
        return self._joint(population).logsumexp(-1)

    def memberships(self, population: ClassPopulation) -> Tensor:
        """Probabilities (*s, n, C) of membership given people's choices."""
        return self._joint(population).softmax(-1)

    def _joint(self, population: ClassPopulation) -> Tensor:
        return self.log_prob_classes(population) + population.log_shares(self.panel.covariates)

    @torch.no_grad()
    def gradients(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted log likelihood (s,) and gradient (s, D) at unconstrained vectors (s, D)."""
        population, space, mixing = self.space.constrain(vectors), self.space, self.model.mixing
        samples, classes, f = len(vectors), space.n_classes, space.n_fixed
        slope = mixing.evaluate(population.location, population.location, population.scale).slope
        flat = population.class_tastes(mixing)[..., 0, :].flatten(0, 1).T
        value, member = vectors.new_zeros(samples), vectors.new_zeros(samples, classes - 1, 1 + len(space.covariates))
        total = vectors.new_zeros(samples * classes, flat.shape[0])
        for _, piece in self._wide_pieces(flat.shape[1]):
            odds = compute_odds(piece.values @ flat, piece)
            shares = population.log_shares(piece.covariates).expand(samples, len(piece), classes)
            joint = odds.log_prob.unflatten(1, (samples, classes)).movedim(0, 1) + shares
            log_prob, weights = joint.logsumexp(-1), piece.weights
            mine = (joint - log_prob[..., None]).exp() * weights[:, None]
            weighted = odds.probabilities() * mine.movedim(1, 0).flatten(1)[:, None]
            total -= weighted.flatten(0, 1).T @ piece.values.flatten(0, 1)
            value += log_prob @ weights
            away = (mine - shares.exp() * weights[:, None])[..., 1:]
            member += away.mT @ regressors(space, piece.covariates, len(piece))
        by_class = total.view(samples, classes, -1) * population.attended
        tastes = vectors.new_zeros(samples, classes, space.width)
        tastes[..., : space.n_random] = by_class[..., f:] * slope
        return value, space.join(by_class[..., :f].sum(1), tastes, member)

    def value_with_error(self, population: ClassPopulation) -> tuple[float, float, float]:
        """Log likelihood, its error, which is zero, and the effective share of draws, of which there are none."""
        return float(self.log_prob_people(population) @ self.weights), 0.0, 1.0

    @torch.no_grad()
    def evaluate(self, vector: Tensor) -> ClassEvaluation:
        """Log likelihood and derivatives at one unconstrained vector (D,)."""
        population, size = self.space.constrain(vector), self.space.size
        n = len(self.panel)
        log_prob, scores = vector.new_zeros(n), vector.new_zeros(n, size)
        information, complete = vector.new_zeros(size, size), vector.new_zeros(size, size)
        for place, piece in dense_pieces(self.panel, _PEOPLE_AT_ONCE):
            found = self._piece(population, piece)
            log_prob[place], scores[place] = found.log_prob, found.scores
            information += found.information
            complete += found.complete
        return ClassEvaluation(log_prob, scores, information, complete, self.panel.weights)

    def _piece(self, population: ClassPopulation, piece: PanelDifferences) -> ClassEvaluation:
        """Derivatives of the people of one piece."""
        classes = [_ClassTerms.of(self, population, piece, c) for c in range(self.space.n_classes)]
        shares = population.log_shares(piece.covariates).expand(len(piece), -1)
        joint = torch.stack([found.log_prob for found in classes], 1) + shares
        log_prob, weights = joint.logsumexp(1), piece.weights
        mine = (joint - log_prob[:, None]).exp()
        columns = regressors(self.space, piece.covariates, len(piece))
        terms = torch.stack([found.scores for found in classes], 1) + member_scores(self.space, shares.exp(), columns)
        scores = (mine[..., None] * terms).sum(1)
        complete = member_information(self.space, shares.exp(), columns, weights)
        for c, found in enumerate(classes):
            complete += found.information(weights * mine[:, c])
        spread = terms * (weights[:, None] * mine).sqrt()[..., None]
        missing = spread.flatten(0, 1).T @ spread.flatten(0, 1) - scores.T @ (weights[:, None] * scores)
        return ClassEvaluation(log_prob, scores, complete - missing, complete, weights)


@dataclass(frozen=True)
class _ClassTerms:
    """Log probabilities (n,), scores (n, D) and information of people's choices at the tastes of one class."""

    log_prob: Tensor
    scores: Tensor
    matrices: Tensor
    bent: Tensor
    columns: list[int]
    size: int

    @classmethod
    def of(
        cls, likelihood: ClassLikelihood, population: ClassPopulation, piece: PanelDifferences, number: int
    ) -> _ClassTerms:
        space, mixing = likelihood.space, likelihood.model.mixing
        inside, counts = population.component(number), population.attended[number]
        value = mixing.evaluate(inside.location, inside.location, inside.scale)
        at = panel_derivatives(piece.values @ (counts * torch.cat([inside.fixed, value.taste])), piece)
        slope, bend = torch.cat([torch.ones_like(inside.fixed), value.slope]), torch.zeros_like(counts)
        if not mixing.is_identity:
            bend[space.n_fixed :] = mixing.curvature(inside.location, inside.location, inside.scale)
        used, columns = space.columns_of_class(number)
        scores = piece.values.new_zeros(len(piece), space.size)
        scores[:, columns] = (at.gradient * slope)[:, used]
        matrices = (slope[:, None] * at.information * slope)[:, used][:, :, used]
        return cls(at.log_prob, scores, matrices, (at.gradient * bend)[:, used], columns, space.size)

    def information(self, weights: Tensor) -> Tensor:
        """Weighted sum (D, D) of people's information in the tastes of the class."""
        result = weights.new_zeros(self.size, self.size)
        if not self.columns:
            return result
        found = (weights @ self.matrices.flatten(1)).view(len(self.columns), -1) - (weights @ self.bent).diag()
        place = torch.tensor(self.columns, dtype=torch.int64)
        result[place[:, None], place] = found
        return result
