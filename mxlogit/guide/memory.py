"""What a training step keeps for its backward pass, in bytes, by part of the guide: where memory goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.likelihood import panel_log_prob
from mxlogit.panels import PanelDifferences


def saved_bytes(function: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Bytes of the storages that autograd keeps for the backward pass of what a function computes.

    Every storage counts once, however many views of it are kept. What checkpointing keeps for itself is not seen.

    Parameters
    ----------
    function : callable
    known : iterable of Tensor
        Parameters and data, which are there anyway.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in known}
    # Tensors are held on to while counting: the address of one that is freed may be given to another.
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
        size = sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in there)
    del result
    return size


def memory_report(guide: AmortizedGuide, panel: PanelDifferences) -> dict[str, int]:
    """Bytes kept for the backward pass of one draw of everybody on a panel, by part.

    Parameters
    ----------
    guide : AmortizedGuide
        In training mode memory-saving backward passes count, as they are in a step.
    panel : PanelDifferences
        A mini-batch.

    Returns
    -------
    dict of str to int
        "encoder", "flow", "likelihood" and their sum, "step".
    """
    model = guide.model
    known = [*guide.parameters(), *guide.buffers(), panel.values]
    known += [] if panel.closed is None else [panel.closed]
    population = model.space.constrain(guide.population_factor().mean.detach()).to(panel.values)
    sizes = {"encoder": 0, "flow": 0}
    with torch.no_grad():
        factor = guide.polished(population, panel)
    if guide.encoder is not None:
        sizes["encoder"] = saved_bytes(lambda: guide.encode(population, panel, None), known)
    if guide.flow is not None:
        warp = guide.flow.attach(factor, population, panel, model.mixing)
        noise = torch.zeros(*factor.mean.shape, 1).to(factor.mean)
        sizes["flow"] = saved_bytes(lambda: warp.forward(noise), [*known, warp.axes, warp.context, noise])
    xi = factor.mean.clone().requires_grad_()
    sizes["likelihood"] = saved_bytes(lambda: panel_log_prob(model.coefficients(population, xi), panel), [*known, xi])
    return {**sizes, "step": sum(sizes.values())}
