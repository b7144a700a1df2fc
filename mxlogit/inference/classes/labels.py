"""Labels of classes, which have no meaning: one of the labellings that describe the same population."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.weighted_draws import WeightedVectors
from mxlogit.model.classes import ClassSpace


def relabel(space: ClassSpace, vectors: Tensor, gaussian: GaussianFactor) -> tuple[Tensor, int]:
    """Vectors (*s, D) whose classes have the labels of the closest classes of a Gaussian's mean, and how many moved.

    Labels of classes have no meaning, and a chain may exchange them (Stephens 2000, Journal of the Royal Statistical
    Society B 62).
    """
    groups = [alike for alike in space.exchangeable if len(alike) > 1]
    if not groups:
        return vectors, 0
    flat = vectors.reshape(-1, vectors.shape[-1])
    _, centre, _ = space.own(gaussian.mean)
    unit = space.own(gaussian.tril.norm(dim=1))[1].clamp(min=1e-12)
    _, tastes, _ = space.own(flat)
    distance = (((tastes[:, :, None] - centre) / unit).square()).sum(-1)
    order = torch.arange(space.n_classes).repeat(len(flat), 1)
    for alike in groups:
        cost = distance[:, alike][:, :, alike]
        # Rows whose classes are all closest to their own labels need no assignment.
        doubtful = (cost.argmin(1) != torch.arange(len(alike))).any(1).nonzero()[:, 0].tolist()
        for row in doubtful:
            mine, theirs = linear_sum_assignment(cost[row].numpy())
            order[row, [alike[b] for b in theirs]] = torch.tensor([alike[a] for a in mine])
    result, natural = flat.clone(), torch.arange(space.n_classes)
    changed = (order != natural).any(1)
    for kind in order[changed].unique(dim=0):
        rows = (order == kind).all(1)
        result[rows] = space.unconstrain(space.permuted(space.constrain(flat[rows]), kind.tolist()))
    moved = int(changed.sum())
    return result.view(vectors.shape), moved


def of_one_labelling(space: ClassSpace, draws: WeightedVectors, gaussian: GaussianFactor) -> WeightedVectors:
    """Weighted draws without those whose classes have other labels than those of a Gaussian's mean.

    Their evidence is then that of one labelling, of which all others are copies.
    """
    natural, moved = relabel(space, draws.vectors, gaussian)
    if not moved:
        return draws
    kept = (natural == draws.vectors).all(1).nonzero()[:, 0]
    log_weights = draws.log_weights[kept]
    total = float(log_weights.logsumexp(0))
    values = None if draws.values is None else draws.values[kept]
    return replace(
        draws,
        vectors=draws.vectors[kept],
        log_weights=log_weights - total,
        values=values,
        log_evidence=draws.log_evidence + total if math.isfinite(total) else draws.log_evidence,
    )
