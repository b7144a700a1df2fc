"""Processes that fit one model: a single process, or the default group of torch.distributed.

All global quantities of a fit are sums over people, so a process needs its own share of the people and, once per pass,
the sum of a few numbers over all processes. Every all-reduce uses a fixed-size buffer whose first element is an error
flag: a process that fails joins the next exchange of the others with the flag set, so that all raise its message
instead of waiting for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mxlogit.errors import ProcessError

# Numbers in one message, error flag included: a pass with up to 88 parameters fits into one message.
_MESSAGE = 8192


class Communicator:
    """Communicator of a single process: collectives are identities.

    Attributes
    ----------
    rank, size : int
        Rank of this process, and number of processes.
    """

    rank = 0
    size = 1

    def all_reduce_sum(self, *parts: Tensor) -> list[Tensor]:
        """Sum tensors over all processes; float64, on the CPU, bitwise equal in all of them."""
        return [part.detach().double().cpu() for part in parts]

    def gather(self, item: Any) -> list[Any]:
        """Return the items of all processes, in order of rank."""
        return [item]

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """Wrap a network such that all processes have the same weights and average their gradients."""
        return module

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Propagate an exception of any process to all processes."""
        yield


class ProcessGroup(Communicator):
    """Communicator of the default group of torch.distributed (gloo, or nccl on GPUs).

    Raises
    ------
    ProcessError
        If another process has failed or was lost; raised by every method.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = own_gpu() if dist.get_backend() == "nccl" else torch.device("cpu")

    def all_reduce_sum(self, *parts: Tensor) -> list[Tensor]:
        """Sum tensors over all processes, in as few messages as possible."""
        wide = [part.detach().to(self._device, torch.float64) for part in parts]
        numbers = torch.cat([part.flatten() for part in wide]) if wide else torch.zeros(0)
        room = _MESSAGE - 1
        sums = [self._exchange(numbers[start : start + room]) for start in range(0, max(1, len(numbers)), room)]
        pieces = torch.cat(sums).cpu().split([part.numel() for part in wide])
        return [piece.view(part.shape) for piece, part in zip(pieces, wide, strict=True)]

    def gather(self, item: Any) -> list[Any]:
        """Return the (pickled) items of all processes, in order of rank."""
        self.all_reduce_sum()
        return self._gather(item)

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """Wrap a network in DistributedDataParallel."""
        self.all_reduce_sum()
        # Buffers outside the state are constants and need not be exchanged. Processes whose pieces differ in shape run
        # the network a different number of times, and would wait for each other at every exchange of buffers.
        state = module.state_dict().keys() - dict(module.named_parameters()).keys()
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=bool(state))

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Propagate an exception of any process to all processes; synchronise at the end."""
        try:
            yield
            self.all_reduce_sum()
        except ProcessError:
            raise
        except Exception as trouble:
            self._announce(f"{type(trouble).__name__}: {trouble}")
            raise

    def _exchange(self, numbers: Tensor) -> Tensor:
        message = torch.zeros(_MESSAGE, dtype=torch.float64, device=self._device)
        message[1 : 1 + len(numbers)] = numbers
        self._reduce(message)
        if float(message[0]):
            self._raise(self._gather(None))
        return message[1 : 1 + len(numbers)]

    def _announce(self, trouble: str) -> None:
        message = torch.zeros(_MESSAGE, dtype=torch.float64, device=self._device)
        message[0] = 1.0
        self._reduce(message)
        self._gather(trouble)

    def _raise(self, troubles: list[str | None]) -> None:
        lines = [f"process {rank} of {self.size}: {text}" for rank, text in enumerate(troubles) if text is not None]
        raise ProcessError("the fit was aborted because another process failed.\n" + "\n".join(lines))

    def _reduce(self, message: Tensor) -> None:
        try:
            dist.all_reduce(message)
        except RuntimeError as trouble:
            raise self._lost(trouble) from trouble

    def _gather(self, item: Any) -> list[Any]:
        items: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(items, item)
        except RuntimeError as trouble:
            raise self._lost(trouble) from trouble
        return items

    def _lost(self, trouble: RuntimeError) -> ProcessError:
        return ProcessError(f"process {self.rank} of {self.size} lost contact with another process: {trouble}")


def own_gpu() -> torch.device:
    """GPU of this process: by its local rank under torchrun, else the current device."""
    place = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
    return torch.device("cuda", place % torch.cuda.device_count())


def current_team() -> Communicator:
    """Return the default group of torch.distributed if it has at least two processes, else a single process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessGroup()
    return Communicator()
