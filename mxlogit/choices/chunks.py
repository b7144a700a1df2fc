"""Sizes of chunks: the one place that says how much is in memory at once.

Computations run over chunks of people, or of choice situations. A chunk has rows of data, and cells: rows times draws
(or chains, nodes or columns, whichever are more). The size of a chunk bounds cells, so that its intermediates stay in
the caches of a processor, or keep a GPU busy.
"""

from __future__ import annotations

import torch

# Cells of a chunk by kind of device. On a processor the overhead of a hundred operations outweighs cache misses
# (50,000 people, 16 draws: .19, .16, .16, .15, .15 s at 1,562, 3,125, 4,096, 6,250, 12,500 people); a GPU needs more
# people than it has lanes.
_CELLS = {"cpu": 4_000_000, "cuda": 128_000_000}
# Most people of a chunk by kind of device: the same measurement.
_MOST_PEOPLE = {"cpu": 8_192, "cuda": 131_072}
# People at a time where data are only read, which bounds memory.
PEOPLE_AT_ONCE = 4_096
# Rows at a time where data are only read, which bounds memory.
ROWS_AT_ONCE = 100_000


def cells_at_once(share: float = 1.0, device: torch.device | None = None) -> int:
    """Return the number of cells of a chunk.

    Parameters
    ----------
    share : float
        Share of the usual number: less where a computation holds several arrays of cells at a time.
    device : torch.device, optional
        Device of the computation; a processor without.
    """
    return int(share * _CELLS[_kind(device)])


def people_at_once(rows: int, width: int, share: float = 1.0, device: torch.device | None = None) -> int:
    """Return the number of people of a chunk, at least one.

    Parameters
    ----------
    rows : int
        Rows of data per person.
    width : int
        Cells per row: draws, chains or columns.
    share, device
        Parameters of `cells_at_once`.
    """
    return max(1, min(_MOST_PEOPLE[_kind(device)], cells_at_once(share, device) // max(1, width) // max(1, rows)))


def _kind(device: torch.device | None) -> str:
    return "cuda" if device is not None and device.type == "cuda" else "cpu"
