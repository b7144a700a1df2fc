"""Draws of simulated likelihood: conventions by hand, laws of every scheme."""

import pytest
import torch

from mxlogit import SpecificationError
from mxlogit.draws.simulation import SCHEMES, PersonDraws


def radical_inverse(i, base):
    value, factor = 0.0, 1.0 / base
    while i:
        value, i, factor = value + factor * (i % base), i // base, factor / base
    return value


def test_halton_by_hand():
    """Primes in order, element 0 counted among the 100 dropped, consecutive blocks per person."""
    draws = PersonDraws("halton", 5, 4, seed=0).normals(0, 3)
    for n in range(3):
        for r in range(5):
            for k, prime in enumerate((2, 3, 5, 7)):
                u = radical_inverse(100 + 5 * n + r, prime)
                assert float(torch.special.ndtr(draws[n, k, r])) == pytest.approx(u, abs=1e-12)
    assert float(draws[0, 0, 0]) == pytest.approx(-1.0432, abs=1e-4)


def test_rotation_shifts_every_point_alike():
    plain = PersonDraws("halton", 7, 2, seed=3)
    uniform, other = (torch.special.ndtr(d.normals(0, 4)) for d in (plain, plain.another()))
    shift = (other - uniform) % 1.0
    torch.testing.assert_close(shift, shift[:1, :, :1].expand_as(shift), atol=1e-12, rtol=0)
    assert float(shift.min()) > 1e-3


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_draws_are_standard_normal_and_differ_between_people(scheme, antithetic):
    make = PersonDraws(scheme, 64, 3, seed=1, antithetic=antithetic)
    draws = make.normals(0, 50)
    assert draws.shape == (50, 3, 64)
    assert torch.isfinite(draws).all()
    assert float(draws.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(draws.var()) == pytest.approx(1.0, abs=0.04)
    assert float((draws[0] - draws[1]).abs().max()) > 0.1
    torch.testing.assert_close(draws, make.normals(0, 50), atol=0, rtol=0)
    if antithetic:
        torch.testing.assert_close(draws[..., :32], -draws[..., 32:], atol=0, rtol=0)
    assert float((draws - make.another().normals(0, 50)).abs().max()) > 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_range_of_people_is_a_part_of_the_whole(scheme):
    make = PersonDraws(scheme, 12, 3, seed=5)
    whole = make.normals(0, 150)
    for start, stop in ((0, 1), (1, 64), (63, 65), (100, 150), (7, 7)):
        torch.testing.assert_close(make.normals(start, stop), whole[start:stop], atol=0, rtol=0)


def test_mlhs_fills_every_stratum_of_every_person():
    uniform = torch.special.ndtr(PersonDraws("mlhs", 16, 2, seed=0).normals(0, 5))
    strata = (uniform * 16).floor().sort(-1).values
    torch.testing.assert_close(strata, torch.arange(16.0, dtype=torch.float64).expand(5, 2, 16), atol=0, rtol=0)


@pytest.mark.parametrize("arguments", [("halton", 0, 2, 0), ("hlton", 5, 2, 0)])
def test_bad_draws_are_refused(arguments):
    with pytest.raises(SpecificationError):
        PersonDraws(*arguments)
