"""The variational family: encoder, Newton steps, flow, population factor, and their Pyro program."""

from typing import TYPE_CHECKING, Any

from mxlogit.guide.draw_subsets import choose_draws, sbp_logmeanexp

if TYPE_CHECKING:
    from mxlogit.guide.memory import memory_report

__all__ = ["choose_draws", "memory_report", "sbp_logmeanexp"]


def __getattr__(name: str) -> Any:
    # Imported on first use: it imports Pyro, which the default route does not need.
    if name == "memory_report":
        from mxlogit.guide.memory import memory_report

        return memory_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
