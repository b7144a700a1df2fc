r"""Stochastic backpropagation: full forward pass, gradients through a subset of each person's choice situations.

After Cheng et al. (2022, CVPR, arXiv 2203.16755) and Fang et al. (2022, NeurIPS, arXiv 2210.00129). Kept rows of a
token-wise map f are computed with autograd, dropped rows without:

.. math:: out_{kept} = f(x_{kept}), \quad out_{dropped} = f(x_{dropped}) \text{ without autograd}.

Outputs, and everything computed from them, are exact. With k of a person's T rows kept, and the gradient that enters
kept rows multiplied by T / k, gradients are unbiased: they are linear in the indicators of kept rows, whose means are
k / T. The factor applies to masked rows in the backward pass only (scaling the loss would scale all other gradients,
too). The published code omits it, so gradients of masked layers are too small by the ratio kept: mode "official".

One mask per residual block ("layer") needs independent masks: a path through two blocks under one mask survives with
probability k / T, not its square. So do the segments between attentions ("query"): kept queries attend to the keys and
values of all situations, which the preceding segment computed under its own mask.

Gradients are no longer unbiased after a nonlinear operation on them. The classic route clips the gradient of q(theta)
by its norm (`diagnostics_["clipped"]` counts how often), but not the encoder's, and uses no weight decay (decoupled
weight decay would not bias gradients).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mxlogit.draws.generators import mixed_bits
from mxlogit.errors import Rule, SpecificationError, at_least, check_flag, check_settings, either, one_of, whole

MODES = ("whole", "layer", "query", "official", "winners")
# Unit of a 53-bit integer as a number in [0, 1).
_UNIFORM_UNIT = 2.0**-53
# Initial share of kept situations with keep="auto"; chosen by hand.
_FIRST_SHARE = 0.5
# Rows computed without autograd, or recomputed, at once, so that their temporary memory stays below the peak; chosen by
# hand.
_CHUNK = 8_192


def _share(other: str) -> Rule:
    """Rule: a number above zero and at most one, with the words for what else is allowed."""

    def check(argument: str, value: Any) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0.0 < value <= 1.0:
            raise SpecificationError(f"{argument} must be above 0 and at most 1, or {other}; got {value!r}.")

    return check


# What each setting may be.
_RULES: dict[str, Rule] = {
    "keep": either("auto", _share("'auto'")),
    "mode": one_of(*MODES),
    "mask": one_of("grid", "random"),
    "min_keep": whole(1),
    "recompute": check_flag,
    "half": check_flag,
    "added": at_least(1e-6),
    "draws": either(None, _share("None")),
}


@dataclass(frozen=True)
class SBP:
    """Settings of stochastic backpropagation: choice situations through which the encoder's gradients pass.

    Parameters
    ----------
    keep : float or "auto"
        Share of a person's situations that are kept, above 0 and at most 1. "auto": starts at one half and is updated
        every fifty steps to the share at which masks add ``added`` times the variance due to mini-batches (after Wang
        et al. 2024, ICLR, arXiv 2306.02728).
    mode : {"whole", "layer", "query", "official", "winners"}
        Placement of the masks. "whole": one mask per person around the token-wise encoder; unbiased. "layer": a
        separate mask for every residual block, block inputs stored for all situations; unbiased. "query": for encoders
        with attention, a separate mask for every segment between attentions, with keys and values of all situations;
        unbiased. "official": the published behaviour, for comparison: one mask for all people and the last two thirds
        of the blocks, gradients not rescaled; biased. "winners": for max pooling, the situations that attain a
        maximum; exact, ``keep`` has no effect.
    mask : {"grid", "random"}
        Choice of the kept situations. "grid": evenly spaced from a random phase; "random": without replacement.
    min_keep : int
        Smallest number of situations kept per person; all are kept if there are no more.
    recompute : bool
        Whether kept rows are recomputed in the backward pass instead of stored: less memory, more time.
    half : bool
        Whether stored activations are rounded to bfloat16: half the memory, relative rounding errors of some
        thousandths in gradients, none in values.
    added : float
        Variance added by masks with ``keep="auto"``, as a share of the variance due to mini-batches.
    draws : float or None
        Share of each person's draws to backpropagate through with ``objective="iwae"``, under weights from all draws;
        unbiased. 1.0: all, recomputed chunk by chunk in the backward pass; exact. None: all, stored.

    References
    ----------
    Cheng et al. (2022), arXiv 2203.16755; Fang et al. (2022), arXiv 2210.00129; one scaled mask around a whole encoder
    after LITE (Bronskill et al. 2021, NeurIPS, arXiv 2107.01105).
    """

    keep: float | str = 0.5
    mode: str = "whole"
    mask: str = "grid"
    min_keep: int = 4
    recompute: bool = False
    half: bool = False
    added: float = 0.1
    draws: float | None = None

    def check(self) -> None:
        """Raise unless the settings are valid.

        Raises
        ------
        SpecificationError
        """
        if self.mode in ("qkv", "head"):
            raise SpecificationError(
                f"SBP(mode={self.mode!r}) changes what the forward pass computes; choose from {list(MODES)}."
            )
        check_settings(self, _RULES)
        if self.recompute and self.half:
            raise SpecificationError("SBP: choose recompute=True or half=True; what is computed again is not recorded.")
        if self.keep == "auto" and self.mode in ("official", "winners"):
            raise SpecificationError(f"SBP(keep='auto') needs an unbiased mask; mode={self.mode!r} has none.")

    @property
    def share(self) -> float:
        """Share of situations that are kept; the initial share with ``keep="auto"``."""
        return _FIRST_SHARE if isinstance(self.keep, str) else self.keep

    def counts(self, n_situations: Tensor) -> Tensor:
        """Number of kept situations of each person, shape (n,)."""
        wanted = (self.share * n_situations.double()).round().to(n_situations.dtype)
        return torch.maximum(wanted, n_situations.clamp(max=self.min_keep))


@dataclass(frozen=True)
class Masks:
    """Masks of the situations to backpropagate through, for every masked part of an encoder.

    Attributes
    ----------
    seen : Tensor, shape (n, t)
        Mask of observed situations, False at padding.
    kept : tuple of Tensor, shape (n, t)
        Masks of kept situations: one for the whole encoder, or one per part; None for a part that keeps all.
    scale : Tensor, shape (n,)
        Factor of the gradients of kept rows.
    """

    settings: SBP
    seen: Tensor
    kept: tuple[Tensor | None, ...]
    scale: Tensor

    @classmethod
    def draw(
        cls, settings: SBP, seen: Tensor, key: tuple[int, ...], people: Tensor, blocks: int, heads: int = 0
    ) -> Masks:
        """Draw the masks of a training step.

        Parameters
        ----------
        settings : SBP
        seen : Tensor, shape (n, t)
        key : tuple of int
            Seed and step.
        people : Tensor, shape (n,)
            Global indices; a person's mask does not depend on the other people of the batch.
        blocks : int
            Number of residual blocks of the encoder.
        heads : int
            Number of its attention heads; 0 without attention.
        """
        n_situations = seen.sum(1)
        counts = settings.counts(n_situations)
        if settings.mode == "official":
            shared = _lattice(seen, settings.share, key)
            first = blocks - max(1, round(2 * blocks / 3))
            kept = tuple(shared if block >= first else None for block in range(blocks))
            return cls(settings, seen, kept, torch.ones_like(counts, dtype=torch.float64))
        if settings.mode == "winners":
            return cls(settings, seen, (), torch.ones_like(counts, dtype=torch.float64))
        parts = blocks + 1 if heads else blocks if settings.mode == "layer" else 1
        masks = tuple(_draw_mask(settings.mask, seen, counts, (*key, part), people) for part in range(parts))
        return cls(settings, seen, masks, n_situations / counts.clamp(min=1).double())

    def apply(self, part: int, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Rows (n, t, w) of a token-wise function of inputs (n, t, ...), with gradients through kept rows only.

        Padded rows are zero, or their values under the function if all rows are kept.
        """
        return self._through(self.kept[part], function, inputs)

    def apply_to_queries(self, part: int, function: Callable[..., Tensor], rows: Tensor, keys: Tensor) -> Tensor:
        """Rows (n, t, v) of a function of rows (n, m, w), given keys (n, t, ...) and the mask of observed situations.

        Gradients with respect to rows, weights and keys pass through kept rows only.
        """
        mask = self.kept[part]
        assert mask is not None
        if self._is_plain(mask):
            return function(rows, keys, self.seen)
        kept = mask & self.seen
        place, there = _true_columns(kept)
        people = max(1, _CHUNK // kept.shape[1])
        recorded = self._recorded(function, [_rows_at(rows, place), keys, self.seen], people)[there]
        recorded = _scale_gradient(recorded, self.scale.repeat_interleave(kept.sum(1))[:, None].to(recorded))
        out = recorded.new_zeros(*kept.shape, recorded.shape[-1])
        with torch.no_grad():
            for chunk in torch.arange(len(kept), device=kept.device).split(people):
                dropped = (self.seen & ~kept)[chunk]
                place, there = _true_columns(dropped)
                if place.shape[1]:
                    part_of = function(_rows_at(rows[chunk], place), keys[chunk], self.seen[chunk])
                    out[chunk[:, None].expand_as(dropped)[dropped], dropped.nonzero()[:, 1]] = part_of[there]
        flat = kept.flatten().nonzero()[:, 0]
        return _put(out.flatten(0, 1), flat, recorded).unflatten(0, kept.shape)

    def apply_to_winners(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Rows of `apply`, with gradients through rows that attain the maximum of a coordinate (the first if tied)."""
        with torch.no_grad():
            nothing = torch.zeros_like(self.seen)
            rows = self._through(nothing, function, inputs).masked_fill(~self.seen[..., None], -math.inf)
            winners = nothing.scatter(1, rows.argmax(1), value=True)
        return self._through(winners, function, inputs)

    def _is_plain(self, mask: Tensor | None) -> bool:
        """Whether all rows are kept without changes, so that plain backpropagation gives bitwise equal results."""
        if self.settings.recompute or self.settings.half:
            return False
        return mask is None or bool((mask | ~self.seen).all())

    def _through(self, mask: Tensor | None, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        if self._is_plain(mask):
            return function(*inputs)
        kept = self.seen if mask is None else mask & self.seen
        n, t = self.seen.shape
        flat = [x.flatten(0, 1) for x in inputs]
        rows = kept.flatten().nonzero()[:, 0]
        scale = self.scale if mask is not None else torch.ones_like(self.scale)
        recorded = self._recorded(function, [x[rows] for x in flat], _CHUNK)
        recorded = _scale_gradient(recorded, scale.repeat_interleave(kept.sum(1))[:, None].to(recorded))
        out = recorded.new_zeros(n * t, recorded.shape[-1])
        with torch.no_grad():
            for chunk in (self.seen & ~kept).flatten().nonzero()[:, 0].split(_CHUNK):
                out[chunk] = function(*(x[chunk] for x in flat))
        return _put(out, rows, recorded).unflatten(0, (n, t))

    def _recorded(self, function: Callable[..., Tensor], inputs: list[Tensor], at_a_time: int) -> Tensor:
        if self.settings.half:
            with rounded_record():
                return function(*inputs)
        if not self.settings.recompute:
            return function(*inputs)
        # In parts that are recomputed one at a time; recomputing all at once would need as much memory as storing.
        parts = zip(*(x.split(at_a_time) for x in inputs), strict=True)
        return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])


def _put(out: Tensor, rows: Tensor, recorded: Tensor) -> Tensor:
    """Write rows at their indices; index_copy would save them for the backward pass."""
    return out.index_put((rows,), recorded)


def _true_columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Column indices (n, m) of each row's True entries, padded to the longest row, and a validity mask (n, m)."""
    counts = mask.sum(1)
    most = int(counts.max()) if len(counts) else 0
    place = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    return place, torch.arange(most, device=mask.device) < counts[:, None]


def _rows_at(rows: Tensor, place: Tensor) -> Tensor:
    """Rows (n, m, w) of each person at indices (n, m); gather would save all rows for the backward pass."""
    return rows[torch.arange(len(rows), device=rows.device)[:, None], place]


# Callbacks for every rounded tensor, because saved-tensor hooks are not applied to what other hooks save.
WATCHERS: list[Callable[[Tensor], object]] = []


@contextmanager
def rounded_record() -> Iterator[None]:
    """Save floating-point activations in bfloat16 for the backward pass; weights are not rounded."""

    def pack(tensor: Tensor) -> Tensor | tuple[Tensor, torch.dtype]:
        # Linear maps save views of their weights.
        base = tensor if tensor._base is None else tensor._base
        if not tensor.is_floating_point() or isinstance(base, nn.Parameter):
            return tensor
        small = tensor.to(torch.bfloat16)
        for watch in WATCHERS:
            watch(small)
        return small, tensor.dtype

    def unpack(kept: Tensor | tuple[Tensor, torch.dtype]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[0].to(kept[1])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (scale,) = ctx.saved_tensors
        return gradient * scale, None


def _scale_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """Return rows whose gradients are multiplied by ``scale`` (m, 1); the rows themselves if all scales are one."""
    if bool((scale == 1.0).all()):
        return x
    result: Tensor = _ScaleGradient.apply(x, scale)
    return result


def _draw_mask(kind: str, seen: Tensor, counts: Tensor, key: tuple[int, ...], people: Tensor) -> Tensor:
    """Mask (n, t) of each person's kept situations: exactly ``counts``, each with the same probability."""
    rank = seen.cumsum(1) - 1
    n_situations = seen.sum(1)
    if kind == "grid":
        phase = (_uniforms(key, people) * n_situations).long()
        return seen & is_on_grid(rank, counts[:, None], n_situations[:, None].clamp(min=1), phase[:, None])
    noise = torch.stack([_uniforms((*key, place), people) for place in range(seen.shape[1])], 1)
    order = noise.masked_fill(~seen, 2.0).argsort(1).argsort(1)
    return seen & (order < counts[:, None])


def is_on_grid(rank: Tensor, kept: Tensor, total: Tensor, phase: Tensor) -> Tensor:
    """Whether situation ``rank`` of ``total`` is among ``kept`` evenly spaced ones, for any ratio of the two.

    Over phases 0 to total - 1 each situation is kept in exactly ``kept`` of them.
    """
    return (rank * kept + phase) % total < kept


def _lattice(seen: Tensor, keep: float, key: tuple[int, ...]) -> Tensor:
    """The published mask: every stride-th situation from a random phase that all people share."""
    stride = max(1, round(1.0 / keep))
    phase = int(mixed_bits(key, torch.zeros(1, dtype=torch.int64))[0] % stride)
    places = torch.arange(seen.shape[1], device=seen.device)
    return ((places + phase) % stride == 0).expand_as(seen)


def _uniforms(key: tuple[int, ...], people: Tensor) -> Tensor:
    """A uniform random number in [0, 1) for each person, a function of key and global index only."""
    return mixed_bits(key, people).bitwise_right_shift(10).double() * _UNIFORM_UNIT
