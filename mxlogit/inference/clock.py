"""The clock of a fit: seconds, passes, history, whom to tell, and when time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mxlogit.execution.processes import Team
from mxlogit.fit import HistoryRow
from mxlogit.optim.trust_region import Iteration

# Passes over all people that remain when a search ends: derivatives at its last point, the log likelihood at the
# estimate with more draws, and people's checks.
_CLOSING_PASSES = 4.0
# Points of a posterior between two reports.
_TOLD_EVERY = 10


class TimeIsOverError(Exception):
    """Raised where a point of a posterior was evaluated when time was over."""


@dataclass
class Clock:
    """Seconds and passes since the start of a fit, its history, whom to tell, and its time limit.

    Attributes
    ----------
    tell : callable
        Receives a line of text whenever there is something to tell.
    limit : float or None
        Seconds that the fit may take.
    team : Team
        Processes that work together: the first one's clock says for all when time is over.
    started : float
        Reading of `time.perf_counter` at the start.
    passes : float
        Gradient equivalents so far.
    history : list of HistoryRow
    was_over : bool
        Whether something was left out because time was over. What is over once stays over.
    on_over : callable
        Called when it is over.
    """

    tell: Callable[[str], None]
    limit: float | None = None
    team: Team = field(default_factory=Team)
    started: float = field(default_factory=time.perf_counter)
    passes: float = 0.0
    history: list[HistoryRow] = field(default_factory=list)
    was_over: bool = False
    on_over: Callable[[], None] = field(default=lambda: None)
    _first: tuple[float, float] | None = None

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def progress(self) -> float:
        """Share of the limit that is used, less what closes a fit; zero without a limit; the same in all processes."""
        if self.limit is None:
            return 0.0
        now = self.seconds()
        self._first = self._first or (now, self.passes)
        began, before = self._first
        passes = self.passes - before
        closing = _CLOSING_PASSES * (now - began) / passes if passes else 0.0
        return float(self.team.gather(min(1.0, (now + closing) / self.limit))[0])

    def is_over(self) -> bool:
        """Return whether the limit leaves no time for more than what closes a fit; the same in all processes."""
        if not self.was_over and self.progress() >= 1.0:
            self.was_over = True
            self.on_over()
        return self.was_over

    def counter(self) -> Callable[[int], None]:
        """Return a callback that counts points of a posterior.

        It reports progress every ten points, and raises `TimeIsOverError` when time is over.
        """
        told = 0

        def count(points: int) -> None:
            nonlocal told
            told += points
            if told % _TOLD_EVERY < points:
                self.tell(f"posterior: {told} points")
            if self.is_over():
                raise TimeIsOverError

        return count

    def record(self, stage: str, iteration: Iteration) -> None:
        """Append a line to the history and report progress."""
        row = HistoryRow(stage, iteration.value, iteration.decrement, self.passes, self.seconds(), iteration.accepted)
        self.history.append(row)
        self.tell(f"{stage}: {self.passes:.1f} passes, log posterior {row.objective:.1f}")
