"""The clock of a fit: seconds, passes, history, progress messages and time limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mxlogit.execution.processes import Communicator
from mxlogit.fit import HistoryRow
from mxlogit.optim.trust_region import Iteration

# Passes over all people after the end of a search: derivatives at its last point, the log likelihood at the estimate
# with more draws, and the checks of people.
_CLOSING_PASSES = 4.0
# Points of a posterior between two progress messages; chosen by hand.
_SHOW_EVERY = 10


class TimeIsOverError(Exception):
    """Raised at the evaluation of a posterior point when the time limit is over."""


@dataclass
class Clock:
    """Seconds and passes since the start of a fit, its history, progress messages and time limit.

    Attributes
    ----------
    show : callable
        Callback that receives progress messages, one line of text each.
    limit : float or None
        Time limit of the fit, in seconds.
    team : Communicator
        Processes of the fit; the clock of the first one decides for all whether time is over.
    started : float
        Reading of `time.perf_counter` at the start.
    passes : float
        Cost so far, in gradients over all people.
    history : list of HistoryRow
    was_over : bool
        Whether the time limit has been reached; once true, it stays true.
    on_over : callable
        Callback at the time limit.
    laps : dict of str -> float
        Seconds of each part of the fit, by name.
    """

    show: Callable[[str], None]
    limit: float | None = None
    team: Communicator = field(default_factory=Communicator)
    started: float = field(default_factory=time.perf_counter)
    passes: float = 0.0
    history: list[HistoryRow] = field(default_factory=list)
    was_over: bool = False
    on_over: Callable[[], None] = field(default=lambda: None)
    laps: dict[str, float] = field(default_factory=dict)
    _first: tuple[float, float] | None = None

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def lap(self, name: str) -> None:
        """Count the seconds since the last lap ended, or since the start, as those of a part of the fit."""
        passed = self.seconds() - sum(self.laps.values())
        self.laps[name] = self.laps.get(name, 0.0) + passed

    def progress(self) -> float:
        """Used share of the limit, less time for the final passes; zero without a limit; the same in all processes."""
        if self.limit is None:
            return 0.0
        now = self.seconds()
        self._first = self._first or (now, self.passes)
        began, before = self._first
        passes = self.passes - before
        closing = _CLOSING_PASSES * (now - began) / passes if passes else 0.0
        return float(self.team.gather(min(1.0, (now + closing) / self.limit))[0])

    def is_over(self) -> bool:
        """Return whether the limit leaves time for the final passes only; the same in all processes."""
        if not self.was_over and self.progress() >= 1.0:
            self.was_over = True
            self.on_over()
        return self.was_over

    def counter(self) -> Callable[[int], None]:
        """Return a callback that counts evaluated points of a posterior.

        It reports progress every ten points and raises `TimeIsOverError` at the time limit.
        """
        counted = 0

        def count(points: int) -> None:
            nonlocal counted
            counted += points
            if counted % _SHOW_EVERY < points:
                self.show(f"posterior: {counted} points")
            if self.is_over():
                raise TimeIsOverError

        return count

    def record(self, stage: str, iteration: Iteration) -> None:
        """Append a row to the history and report progress."""
        row = HistoryRow(stage, iteration.value, iteration.decrement, self.passes, self.seconds(), iteration.accepted)
        self.history.append(row)
        self.show(f"{stage}: {self.passes:.1f} passes, log posterior {row.objective:.1f}")
