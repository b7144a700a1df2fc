"""A constant added to a column changes nothing: differences are taken before anything is rounded."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from mxlogit import MCMC, MSLE, SVI, VI, ChoiceData, MixedLogit, Training, pack_choices
from mxlogit.errors import SpecificationError
from mxlogit.simulate import simulate_choices

# Adding 2^22 to a number of order one and taking it away again costs 1e-9 of it in double precision; this much of a
# coefficient and of a log likelihood is what the issue allows.
RELATIVE = 1e-6

METHODS = {
    "default": VI(n_samples=24),
    "vi": VI(draws=16, n_samples=8, correct=False),
    "adam": SVI(polish=0, flow=None, n_samples=8, training=Training(steps=20, batch_size=50)),
    "msle": MSLE(n_draws=20),
    "mcmc": MCMC(chains=2, warmup=20, samples=20),
}


@pytest.fixture(scope="module")
def frame():
    made, _ = simulate_choices(100, 6, 3, fixed={"f": 0.5}, random={"x": (-1.0, 0.6)}, random_state=0)
    return made


def make(method="vi", **more):
    return MixedLogit(fixed=["f"], random=["x"], method=METHODS.get(method, method), random_state=1, **more)


@pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")
@pytest.mark.parametrize("method", METHODS)
def test_levels_do_not_matter(frame, method):
    """Fit, summary, people and predictions of every engine with f + 2^22 and x + 2^23."""
    moved = frame.assign(f=frame.f + 2.0**22, x=frame.x + 2.0**23)
    one, other = make(method).fit(frame), make(method).fit(moved)
    pd.testing.assert_series_equal(other.coef_, one.coef_, rtol=RELATIVE, atol=RELATIVE)
    assert other.log_likelihood_ == pytest.approx(one.log_likelihood_, rel=RELATIVE)
    few, moved_few = (rows[rows["id"] <= 25] for rows in (frame, moved))
    pd.testing.assert_frame_equal(other.individual_coefficients(moved_few), one.individual_coefficients(few), atol=1e-5)
    for tastes in ("population", "individual"):
        pd.testing.assert_series_equal(
            other.predict_proba(moved_few, tastes=tastes), one.predict_proba(few, tastes=tastes), atol=1e-5
        )
    assert one.score(moved) == pytest.approx(one.score(frame), rel=RELATIVE)


@pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")
@pytest.mark.parametrize("method", ["default", "vi"])
def test_levels_do_not_matter_in_packs(frame, tmp_path, method):
    moved = frame.assign(f=frame.f + 2.0**22, x=frame.x + 2.0**23)
    packs = [pack_choices(rows, tmp_path / name, names=["f", "x"]) for name, rows in (("a", frame), ("b", moved))]
    one, other = (make(method).fit(pack) for pack in packs)
    pd.testing.assert_series_equal(other.coef_, one.coef_, rtol=RELATIVE, atol=RELATIVE)
    assert other.log_likelihood_ == pytest.approx(one.log_likelihood_, rel=RELATIVE)


@pytest.mark.parametrize("level", [0.0, 4e6, 8e6, 1.7e9, -1.7e9, 1e12])
def test_levels_do_not_matter_for_what_does_not_vary(frame, level):
    """What is constant within situations is said to be, however large, and only that."""
    per_person = frame["id"].to_numpy() / 3.0
    with pytest.raises(SpecificationError, match="does not vary"):
        MixedLogit(fixed=["g"]).fit(frame.assign(g=level + per_person))
    MixedLogit(fixed=["f"], random_state=0).fit(frame.assign(f=level + frame.f.round(2)))


def logit_by_hand(frame, column):
    """Maximum likelihood of a one-coefficient logit, by scipy."""
    values = frame[column].to_numpy(float).reshape(-1, 3)
    chosen = frame["choice"].to_numpy().reshape(-1, 3).argmax(1)
    values = values - values[np.arange(len(values)), chosen][:, None]
    size = values.std()

    def loss(b):
        return float(np.log(np.exp(b[0] * values / size).sum(1)).sum())

    return minimize(loss, [0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10}).x[0] / size


@pytest.mark.parametrize("kind", ["float64", "int64", "nanoseconds", "uint64", "float32", "polars", "arrow"])
def test_dates_and_large_numbers(kind):
    """Seconds after some time of day, from 1970: the issue's column, as numbers of every kind."""
    frame, _ = simulate_choices(800, 8, 3, random={"x": (-1.0, 0.6)}, random_state=0)
    late = (frame.x.rank(pct=True) * 600).round()
    by_hand = logit_by_hand(frame.assign(late=late), "late")
    assert by_hand == pytest.approx(-0.00476, abs=5e-6)
    if kind == "nanoseconds":
        values = 1_700_000_000_000_000_000 + late.astype(np.int64)
    elif kind == "uint64":
        values = np.uint64(2**63) + late.to_numpy().astype(np.uint64)
    elif kind == "float32":
        values = late.astype(np.float32)
    else:
        values = 1_700_000_000 + late.astype("int64" if kind == "int64" else "float64")
    table = frame.assign(t=values)
    if kind == "polars":
        import polars as pl

        table = pl.from_pandas(table)
    if kind == "arrow":
        import pyarrow as pa

        table = pa.Table.from_pandas(table)
    for dtype in ("float32", "float64"):
        est = MixedLogit(fixed=["t"], method="msle", dtype=dtype).fit(table)
        assert est.coef_["t"] == pytest.approx(by_hand, rel=1e-5)


def test_arrays_keep_their_precision():
    """Attributes in double precision are differenced before a fit in single precision rounds them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5, 3, 1))
    chosen = (x[..., 0] + rng.gumbel(size=(300, 5, 3))).argmax(-1)
    fits = [
        MixedLogit(fixed=["x"], random_state=0).fit(ChoiceData.from_arrays(x + level, chosen, names=["x"])).coef_["x"]
        for level in (0.0, 2.0**22)
    ]
    assert fits[0] == pytest.approx(fits[1], rel=RELATIVE)
    data = ChoiceData.from_arrays(torch.from_numpy(x), torch.from_numpy(chosen), names=["x"])
    assert data.attributes.dtype == torch.float64
