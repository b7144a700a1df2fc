"""Adaptive share of situations kept in the backward pass, for a given relative increase of gradient variance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mxlogit.execution.processes import Communicator
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.model.panels import Panels

# Steps between adjustments; chosen by hand.
EVERY = 50
# Decay of the running sums per adjustment; chosen by hand.
_FORGET = 0.8
# Smallest and largest share kept; chosen by hand.
_LEAST = 1.0 / 16.0
_MOST = 0.9


@dataclass
class KeepControl:
    """Controller of the share of kept situations by variances of the encoder's gradient.

    Masks that keep a share add (1 / share - 1) C to the variance of a gradient. C is estimated from two masks under the
    same people and noise, the variance B of mini-batches from their halves; no pass without masks is needed. The target
    share has (1 / share - 1) C = added B. After the controller of Wang et al. (2024, ICLR, arXiv 2306.02728), whose
    steps have a fixed size.

    Attributes
    ----------
    guide : AmortizedGuide
        Guide with ``sbp`` set.
    team : Communicator
    masks, batches : float
        Running sums of C and B.
    """

    guide: AmortizedGuide
    team: Communicator
    masks: float = 0.0
    batches: float = 0.0

    def adjust(self, panel: Panels, people: Tensor, key: tuple[int, int]) -> None:
        """Measure the variances on a mini-batch and set the share.

        Parameters
        ----------
        panel : PanelDifferences or RaggedPanels
        people : Tensor of int
            Local indices of the mini-batch.
        key : tuple of int
            Seed and step.
        """
        sbp = self.guide.sbp
        assert sbp is not None
        if len(people) < 2:
            return
        gradients = torch.stack([self._halves(panel, people, (*key, 7, mask)) for mask in range(2)])
        by_masks = 0.5 * gradients.mean(1).diff(dim=0).square().sum()
        by_both = gradients.diff(dim=1).square().sum() / 8.0
        masks, both = self.team.all_reduce_sum(by_masks, by_both)
        share = sbp.share
        self.masks = _FORGET * self.masks + float(masks) / (1.0 / share - 1.0)
        self.batches = _FORGET * self.batches + max(float(both - masks), 0.0)
        if self.masks > 0.0:
            wanted = self.masks / (self.masks + sbp.added * self.batches)
            self.guide.sbp = replace(sbp, keep=min(max(wanted, _LEAST), _MOST))

    def _halves(self, panel: Panels, people: Tensor, mask_key: tuple[int, ...]) -> Tensor:
        """Gradients (2, d) per person of the encoder's bound on two halves of the people, under the same mask key."""
        guide = self.guide
        # The wrapper of several processes averages gradients, which must not happen here.
        shared: Any = guide.encoder
        encoder = getattr(shared, "module", shared)
        population = guide.model.space.constrain(guide.population_factor().mean.detach()).to(panel.values)
        devices = [panel.values.device] if panel.values.is_cuda else []
        rows = []
        guide.mask_key, guide.encoder = mask_key, encoder
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((mask_key[0] + mask_key[1]) % 2**63)
            for half in people.chunk(2):
                bound = guide.encoder_bound(population, panel.take(half), half) / len(half)
                parts = torch.autograd.grad(bound, list(encoder.parameters()))
                rows.append(torch.cat([part.flatten().double() for part in parts]))
        guide.encoder = shared
        return torch.stack(rows)
