"""The likelihood of a mixture of normals: of each class by importance sampling, with scores of every person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.execution.people import People
from mxlogit.integration.class_likelihood import ClassEvaluation, ClassLikelihood
from mxlogit.integration.importance import WeightedDraws
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.membership import member_scores, regressors
from mxlogit.integration.proposals import Proposal
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.classes import ClassPopulation, ClassSpace
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import ParameterSpace, PopulationParameters

# Degrees of freedom of the Student-t proposals, and most Newton steps to modes in a pass.
_FREEDOM, _NEWTON_STEPS = 8, 6


def attended_only(panel: Panels, counts: Tensor) -> Panels:
    """Panels with the columns (f + k) that do not count set to zero."""
    if bool((counts > 0.0).all()):
        return panel
    return replace(panel, values=panel.values * counts.to(panel.values))


class MixtureLikelihood:
    """Likelihood of a population of classes within which tastes are spread.

    Parameters
    ----------
    model : MixedLogitModel
        Model whose parameter space is a `ClassSpace` with spread.
    panel : PanelDifferences or RaggedPanels
    seed : int
        Root seed of the draws.
    integration : IntegrationSettings
    keys : Tensor, int64, shape (n,), optional
        Seeds of each person's quasi-random draws, as in `MarginalLikelihood`.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        panel: Panels,
        seed: int,
        integration: IntegrationSettings,
        keys: Tensor | None = None,
    ) -> None:
        assert isinstance(model.space, ClassSpace)
        self.model, self.space, self.panel, self.integration = model, model.space, panel, integration
        self.seed, self.keys = seed, keys
        self.plain = ParameterSpace(self.space.fixed, self.space.random, self.space.blocks)
        self.weights = panel.weights.double()
        self.classes = [
            MarginalLikelihood(
                People.gather(attended_only(panel, counts)), self.plain, model.mixing, seed, f"class {c + 1}", keys=keys
            )
            for c, counts in enumerate(self.space.attended)
        ]

    def redrawn(self, integration: IntegrationSettings) -> MixtureLikelihood:
        """Return the likelihood on other draws; searches for modes begin where they ended."""
        other = MixtureLikelihood(self.model, self.panel, self.seed, integration, self.keys)
        for mine, theirs in zip(self.classes, other.classes, strict=True):
            theirs.modes = mine.modes.clone()
        return other

    def log_prob_classes(self, population: ClassPopulation) -> Tensor:
        """Log probabilities (*s, n, C) of people's choices in each class, for population values (*s)."""
        if population.fixed.dim() > 1:
            each = [self.log_prob_classes(population.map(lambda x, i=i: x[i])) for i in range(len(population.fixed))]  # type: ignore[misc]
            return torch.stack(each)
        parts = []
        for c, marginal in enumerate(self.classes):
            component = population.component(c)
            proposals = marginal.propose(component, self.integration)
            parts.append(marginal.log_prob_people(component, proposals))
        return torch.stack(parts, -1)

    def weigh_class(self, population: ClassPopulation, number: int) -> Iterator[tuple[Proposal, WeightedDraws]]:
        """Weighted draws of people's whitened tastes as members of a class, chunk after chunk."""
        component, marginal = population.component(number), self.classes[number]
        yield from marginal.weigh(component, marginal.propose(component, self.integration))

    def value_with_error(self, population: ClassPopulation) -> tuple[float, float, float]:
        """Log likelihood, its Monte Carlo standard error, and the mean effective share of people's draws."""
        n, classes = len(self.panel), self.space.n_classes
        log_prob, variance, ess = (torch.zeros(n, classes, dtype=torch.float64) for _ in range(3))
        for c in range(classes):
            for proposal, drawn in self.weigh_class(population, c):
                log_prob[proposal.part, c] = drawn.log_marginal.double()
                variance[proposal.part, c] = drawn.log_variance.double()
                ess[proposal.part, c] = drawn.ess_fraction.double()
        joint = log_prob + population.log_shares(self.panel.covariates)
        mine = joint.softmax(-1)
        squared = self.weights.square() @ (mine.square() * variance).sum(1)
        share = float(self.weights @ (mine * ess).sum(1)) / float(self.weights.sum())
        return float(self.weights @ joint.logsumexp(-1)), float(squared) ** 0.5, share

    def log_prob_people(self, population: ClassPopulation) -> Tensor:
        """Log probabilities (*s, n) of people's choices, memberships summed out."""
        return self._joint(population).logsumexp(-1)

    def memberships(self, population: ClassPopulation) -> Tensor:
        """Probabilities (*s, n, C) of membership given people's choices."""
        return self._joint(population).softmax(-1)

    def _joint(self, population: ClassPopulation) -> Tensor:
        return self.log_prob_classes(population) + population.log_shares(self.panel.covariates)

    def evaluate(self, vector: Tensor) -> ClassEvaluation:
        """Log likelihood and scores at one unconstrained vector (D,); information by outer products of scores."""
        population, n = self.space.constrain(vector), len(self.panel)
        found = [self._score_class(population.component(c), c) for c in range(self.space.n_classes)]
        shares = population.log_shares(self.panel.covariates).expand(n, -1)
        joint = torch.stack([log_prob for log_prob, _ in found], 1) + shares
        log_prob = joint.logsumexp(1)
        mine = (joint - log_prob[:, None]).exp()
        terms = member_scores(self.space, shares.exp(), regressors(self.space, self.panel.covariates, n))
        for c, (_, scores) in enumerate(found):
            terms[:, c] += scores
        scores = (mine[..., None] * terms).sum(1)
        spread = (terms * (self.weights[:, None] * mine).sqrt()[..., None]).flatten(0, 1)
        total = self.weights @ scores
        information = scores.T @ (self.weights[:, None] * scores) - torch.outer(total, total) / self.weights.sum()
        return ClassEvaluation(log_prob, scores, information, spread.T @ spread, self.weights)

    def _score_class(self, component: PopulationParameters, number: int) -> tuple[Tensor, Tensor]:
        """Log probabilities (n,) of choices in a class, and their scores (n, D) in the unconstrained vector."""
        log_prob, moves = self.classes[number].score_people(component, self.integration)
        inside = torch.linalg.solve(self.plain.relative_jacobian(component), moves, left=False)
        f, width, result = self.space.n_fixed, self.space.width, moves.new_zeros(len(moves), self.space.size)
        fixed_counts = self.space.attended[number, :f]
        result[:, :f] = inside[:, :f] * fixed_counts
        columns = [(new, old - number * width) for new, old in enumerate(self.space.kept) if old // width == number]
        if columns:
            places, sources = zip(*columns, strict=True)
            result[:, [f + place for place in places]] = inside[:, [f + source for source in sources]]
        return log_prob, result


def likelihood_of_classes(
    model: MixedLogitModel, panel: Panels, seed: int, draws: int = 64, stream: int = 3
) -> ClassLikelihood | MixtureLikelihood:
    """Likelihood of a population of classes: exact without spread, else by importance sampling."""
    assert isinstance(model.space, ClassSpace)
    if not model.space.is_spread:
        return ClassLikelihood(model, panel)
    return MixtureLikelihood(model, panel, seed, IntegrationSettings(draws, _FREEDOM, stream, _NEWTON_STEPS))
