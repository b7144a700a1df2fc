"""Products of many small matrices against loops, on both sides of the size at which their way changes."""

import pytest
import torch

from mxlogit.model.products import add_products, multiply


@pytest.mark.parametrize(("rows", "columns", "draws"), [(2, 1, 64), (2, 3, 64), (2, 3, 67), (1, 1, 1), (5, 4, 300)])
def test_products_equal_a_loop(generator, rows, columns, draws):
    values = torch.randn(7, rows, columns, generator=generator, dtype=torch.float64)
    drawn = torch.randn(7, columns, draws, generator=generator, dtype=torch.float64)
    start = torch.randn(7, rows, 1, generator=generator, dtype=torch.float64)
    expected = torch.stack([a @ b for a, b in zip(values, drawn, strict=True)])
    torch.testing.assert_close(multiply(values, drawn), expected)
    torch.testing.assert_close(add_products(start, values, drawn), start + expected)
    room = torch.empty_like(expected)
    assert multiply(values, drawn, out=room) is room
    torch.testing.assert_close(room, expected)


def test_no_people_no_columns():
    assert multiply(torch.ones(0, 2, 1), torch.ones(0, 1, 4)).shape == (0, 2, 4)
    assert torch.equal(multiply(torch.ones(3, 2, 0), torch.ones(3, 0, 4)), torch.zeros(3, 2, 4))
