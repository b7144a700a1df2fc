"""Panels whose situations come once for each node of tastes that vary between situations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.choices.runs import first_places, places_of_runs
from mxlogit.model.dense_panels import PanelDifferences, Section
from mxlogit.model.panels import Panels, RaggedPanels
from mxlogit.model.situation_deviations import SituationDeviations


def with_nodes(panels: Panels, varying: SituationDeviations) -> Panels:
    """Panels whose situations come once for each node, with the columns of the standard deviations filled."""
    nodes, log_weights = varying.nodes()
    nodes = nodes.to(panels.values)
    if isinstance(panels, PanelDifferences):
        parts = [part[:, :, None].expand(-1, -1, len(nodes), -1, -1) for part in panels.by_section(panels.values)]
        values = torch.cat([_filled(part, nodes, varying).flatten(1, 3) for part in parts], 1)
        unavailable = None
        if panels.unavailable is not None:
            hidden = [part[:, :, None].expand(-1, -1, len(nodes), -1) for part in panels.by_section(panels.unavailable)]
            unavailable = torch.cat([part.flatten(1, 3) for part in hidden], 1)
        sections = tuple(Section(section.situations * len(nodes), section.others) for section in panels.sections)
        return replace(panels, values=values, unavailable=unavailable, sections=sections, log_nodes=log_weights)
    return _ragged_with_nodes(panels, nodes, log_weights, varying)


def _filled(values: Tensor, nodes: Tensor, varying: SituationDeviations) -> Tensor:
    """Values (..., q, J - 1, K) of every node with the columns of the standard deviations."""
    values = values.clone()
    for place, (deviation, coefficient) in enumerate(zip(varying.deviations, varying.coefficients, strict=True)):
        values[..., deviation] = values[..., coefficient] * nodes[:, place, None]
    return values


def _ragged_with_nodes(
    panels: RaggedPanels, nodes: Tensor, log_weights: Tensor, varying: SituationDeviations
) -> RaggedPanels:
    count, others = len(nodes), panels.others
    runs = others.repeat_interleave(count)
    index = places_of_runs(first_places(others)[:-1].repeat_interleave(count), runs)
    node = torch.arange(count, device=others.device).repeat(len(others)).repeat_interleave(runs)
    values = panels.values[index]
    for place, (deviation, coefficient) in enumerate(zip(varying.deviations, varying.coefficients, strict=True)):
        values[:, deviation] = values[:, coefficient] * nodes[node, place]
    values = torch.cat([values, panels.values[-1:]])
    return replace(panels, values=values, others=runs, log_nodes=log_weights)
