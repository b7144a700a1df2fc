"""Memory that a training step keeps for its backward pass, in bytes, by part of the guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.subsampling import WATCHERS
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import panel_log_prob


def saved_bytes(function: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Bytes of the storages that autograd keeps for the backward pass of a function.

    Every storage counts once, however many views of it are kept. Inputs saved by checkpointing are not counted.

    Parameters
    ----------
    function : callable
    known : iterable of Tensor
        Parameters and data, which are not counted.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in known}
    # References are held while counting, because the address of a freed tensor may be reused.
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    WATCHERS.append(keep)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = function()
            size = sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in there)
    finally:
        WATCHERS.remove(keep)
    del result
    return size


def peak_bytes(function: Callable[[], object]) -> int:
    """Peak increase of GPU memory, in bytes, during a function and its backward pass."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.enable_grad():
        result = function()
    _total(result).backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _total(result: object) -> Tensor:
    """Sum of the elements of a tensor, or of the tensors in a tuple or in the fields of an object."""
    if isinstance(result, Tensor):
        return result.sum()
    parts = result if isinstance(result, tuple) else vars(result).values()
    return torch.stack([part.sum() for part in parts if isinstance(part, Tensor) and part.requires_grad]).sum()


def memory_report(guide: AmortizedGuide, panel: PanelDifferences) -> dict[str, int]:
    """Bytes kept for the backward pass of one draw per person of a panel, by part of the guide.

    Parameters
    ----------
    guide : AmortizedGuide
        Guide to measure; in training mode with its memory-saving backward passes, as in a training step.
    panel : PanelDifferences
        Mini-batch of people. On a GPU the peak increase over a forward and backward pass is measured instead.

    Returns
    -------
    dict of str to int
        Bytes of "encoder", "flow" and "likelihood", and their sum "step".
    """
    model = guide.model
    on_gpu = panel.values.is_cuda
    measure = (lambda function, known: peak_bytes(function)) if on_gpu else saved_bytes
    known = [*guide.parameters(), *guide.buffers(), panel.values]
    known += [] if panel.unavailable is None else [panel.unavailable]
    population = model.space.constrain(guide.population_factor().mean.detach()).to(panel.values)
    sizes = {"encoder": 0, "flow": 0}
    with torch.no_grad():
        factor = guide.polished(population, panel)
    if guide.encoder is not None:
        places = torch.arange(len(panel), device=panel.values.device)
        sizes["encoder"] = measure(lambda: guide.encode(population, panel, places), known)
    if guide.flow is not None:
        warp = guide.flow.attach(factor, population, panel, model.mixing)
        noise = torch.zeros(*factor.mean.shape, 1).to(factor.mean)
        sizes["flow"] = measure(lambda: warp.forward(noise), [*known, warp.axes, warp.context, noise])
    xi = factor.mean.clone().requires_grad_()
    sizes["likelihood"] = measure(
        lambda: panel_log_prob(model.coefficients(population, xi, panel), panel), [*known, xi]
    )
    return {**sizes, "step": sum(sizes.values())}
