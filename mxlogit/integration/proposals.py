"""Importance proposals for the tastes of some people, and their base draws."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mxlogit.draws.importance import BaseDraws, DrawScheme
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.dense_panels import PanelDifferences

_FEWEST_DRAWS = 16  # of a person whose rows x draws exceed a chunk; chosen by hand


@dataclass(frozen=True)
class Window:
    """A range of ``count`` people from global index ``first``, visited in groups that may be out of order.

    ``keeps``: keep the draws of groups in order for the next pass. ``keys`` (count,), if given, seed each person's
    draws in place of its global index.
    """

    first: int
    count: int
    keeps: bool = False
    keys: Tensor | None = None
    drawn: dict[tuple[DrawScheme, int, int], BaseDraws] = field(default_factory=dict)

    def points(self, scheme: DrawScheme, group: slice | Tensor, like: Tensor) -> BaseDraws:
        """Base draws of a group; drawn once for the whole window if groups are out of order."""
        if self.keys is not None or scheme.is_net:
            keys = torch.arange(self.first, self.first + self.count) if self.keys is None else self.keys
            return scheme.quasi_points(keys.to(like.device)[group], like)
        if isinstance(group, Tensor):
            return self._points(scheme, 0, self.count, like).take(group)
        if self.keeps:
            return self._points(scheme, group.start, group.stop, like)
        return scheme.points(self.first + group.start, group.stop - group.start, like)

    def _points(self, scheme: DrawScheme, start: int, stop: int, like: Tensor) -> BaseDraws:
        key = scheme, start, stop
        if key not in self.drawn:
            self.drawn[key] = scheme.points(self.first + start, stop - start, like)
        return self.drawn[key]


@dataclass(frozen=True)
class Proposal:
    """Importance proposal of some people: local indices ``part``, panel, local factors and base draws.

    ``window`` and ``group`` locate the people among all; ``cells`` bounds rows x draws evaluated at once;
    ``variational_steps``, ``pathwise`` and ``from_population`` are those of the integration settings.
    """

    part: slice | Tensor
    panel: PanelDifferences
    factor: LocalFactor
    base: BaseDraws
    window: Window
    group: slice | Tensor
    variational_steps: int
    cells: int
    pathwise: bool = False
    from_population: bool = False

    def points(self, scheme: DrawScheme) -> BaseDraws:
        """Base draws of these people."""
        return self.window.points(affordable(scheme, self.panel, self.cells), self.group, self.factor.mean)


def affordable(scheme: DrawScheme, panel: PanelDifferences, cells: int) -> DrawScheme:
    """Reduce the draws of a person that alone exceeds a chunk: a panel of that length all but determines its tastes."""
    draws = max(_FEWEST_DRAWS, _FEWEST_DRAWS * (cells // (_FEWEST_DRAWS * max(1, panel.n_rows))))
    return scheme if scheme.draws <= draws else replace(scheme, draws=draws)
