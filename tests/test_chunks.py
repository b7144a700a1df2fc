"""Sizes of chunks: one function bounds rows times draws, and nothing is too large for it."""

import pytest
import torch

from mxlogit.choices.chunks import cells_at_once, people_at_once


@pytest.mark.parametrize("device", [None, torch.device("cpu"), torch.device("cuda")])
@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (40, 16), (7, 3_000), (3_000, 1), (60_000, 4_096), (0, 0)])
def test_a_chunk_holds_no_more_cells_than_allowed_unless_it_is_one_person(rows, width, share, device):
    people, cells = people_at_once(rows, width, share, device), cells_at_once(share, device)
    assert people >= 1
    assert people == 1 or people * rows * width <= cells
    # Twice as many would be too many, or there are as many as ever.
    largest = people_at_once(0, 0, share, device)
    assert people == largest or 2 * people * max(1, rows) * max(1, width) > cells


def test_a_gpu_takes_more():
    assert people_at_once(40, 16, device=torch.device("cuda")) > people_at_once(40, 16)
