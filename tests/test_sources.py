"""The same choices in other types, files and batches: as the plain frame says, or refused by name."""

import datetime as dt
import json
import re
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from mxlogit import (
    MCMC,
    MSLE,
    VI,
    ChoiceData,
    ChoiceDataError,
    ChoiceDataWarning,
    ConvergenceWarning,
    MixedLogit,
    PackedChoices,
    SpecificationError,
    pack_choices,
    wide_to_long,
)
from mxlogit.simulate import simulate_choices

pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
# Nanoseconds since 1970, in which double precision knows 256 of them; sums of equal float64 numbers.
LEVEL, EXACT = 1_700_000_000_000_000_123, 1e-9


@pytest.fixture(scope="module")
def frame():
    made = simulate_choices(90, 3, 3, fixed={"x": -0.7, "z": 0.4}, random_state=0)[0]
    return made.assign(late=(made["x"].rank(pct=True) * 9).round().astype("int64"), open=True)


def coefficients(data, names=("late", "z"), **request):
    return MixedLogit(fixed=list(names), method="msle", random_state=0, **request).fit(data).coef_


@pytest.fixture(scope="module")
def right(frame):
    return coefficients(frame)


def with_hole(values):
    """One value less, in the row of an alternative that is not available."""
    return [None if i == 0 else v for i, v in enumerate(values)]


TYPES = {
    "int64": lambda v: pd.Series(v, dtype="int64"),
    "uint64": lambda v: pd.Series(v, dtype="uint64"),
    "Int64": lambda v: pd.Series(v, dtype="Int64"),
    "Int64 with a hole": lambda v: pd.Series(with_hole(v), dtype="Int64"),
    "pyarrow with a hole": lambda v: pd.Series(with_hole(v), dtype="int64[pyarrow]"),
    "objects": lambda v: pd.Series(v, dtype=object),
    "objects with a hole": lambda v: pd.Series(with_hole(v), dtype=object),
    "decimals": lambda v: pd.Series([Decimal(x) for x in v], dtype=object),
    "decimals with halves": lambda v: pd.Series([Decimal(x) + Decimal("0.5") for x in v], dtype=object),
    "fractions": lambda v: pd.Series([Fraction(x) for x in v], dtype=object),
    "numpy integers": lambda v: pd.Series([np.int64(x) for x in v], dtype=object),
}


def not_chosen_first(frame):
    """The frame, its first row one of an alternative that is not available and so may lack values."""
    changed = frame.copy()
    others = np.flatnonzero(~changed["choice"].to_numpy()[:3])
    order = [others[0], *(i for i in range(len(changed)) if i != others[0])]
    changed = changed.iloc[order].reset_index(drop=True)
    changed.loc[0, "open"] = False
    return changed


@pytest.mark.parametrize("kind", list(TYPES))
def test_levels_beyond_double_precision(frame, kind):
    plain = not_chosen_first(frame)
    expected = coefficients(plain, availability="open")
    values = TYPES[kind]([int(x) + LEVEL for x in plain["late"]])
    raised = plain.assign(late=values.to_numpy(object) if values.dtype == object else values)
    np.testing.assert_allclose(coefficients(raised, availability="open"), expected, rtol=EXACT)
    est = MixedLogit(fixed=["late", "z"], method="msle", availability="open").fit(plain)
    np.testing.assert_allclose(est.predict_proba(raised), est.predict_proba(plain), rtol=1e-6)


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt64, pl.Int128, pl.Decimal(38, 1)], ids=str)
@pytest.mark.parametrize("hole", [False, True])
def test_levels_beyond_double_precision_in_polars(frame, kind, hole):
    plain = not_chosen_first(frame)
    expected = coefficients(plain, availability="open")
    values = [int(x) + LEVEL for x in plain["late"]]
    table = pl.DataFrame({name: plain[name].tolist() for name in plain.columns if name != "late"})
    table = table.with_columns(pl.Series("late", with_hole(values) if hole else values, dtype=kind))
    np.testing.assert_allclose(coefficients(table, availability="open"), expected, rtol=EXACT)


ARRAYS = {
    "int64": lambda v: v,
    "uint64": lambda v: v.astype(np.uint64),
    "objects": lambda v: v.astype(object),
    "decimals": lambda v: np.array([Decimal(int(x)) for x in v.ravel()], dtype=object).reshape(v.shape),
    "long doubles": lambda v: v.astype(np.longdouble),
    "tensor": torch.from_numpy,
    "negative": lambda v: v - 2 * LEVEL,
}


@pytest.mark.parametrize("kind", list(ARRAYS))
def test_levels_beyond_double_precision_in_arrays(kind):
    """Where no alternative is there is zero, far from all others."""
    if kind == "long doubles" and np.finfo(np.longdouble).nmant <= np.finfo(float).nmant:
        pytest.skip("long doubles are double precision on this machine")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 9, (40, 4, 3, 1))
    available = rng.random((40, 4, 3)) < 0.8
    available[..., 1] = True
    chosen = np.ones((40, 4), int)
    chosen[::2] = available[::2, :, ::2].any(-1) * np.where(available[::2, :, 0], 0, 2) + ~available[::2, :, ::2].any(
        -1
    )
    large = np.where(available[..., None], small + LEVEL, 2 * LEVEL if kind == "negative" else 0)
    plain, raised = (
        coefficients(ChoiceData.from_arrays(x, chosen, names=["late"], available=available), ["late"])
        for x in (small, ARRAYS[kind](large))
    )
    np.testing.assert_allclose(raised, plain, rtol=EXACT)


@pytest.mark.parametrize("level", [2**24, 2**50, 2**52, 2**53 - 10])
@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_whole_numbers_vary_however_large(frame, right, level, dtype):
    np.testing.assert_allclose(
        coefficients(frame.assign(late=(frame["late"] + level).astype(dtype))), right, rtol=EXACT
    )


# -- packs -----------------------------------------------------------------------------------------


def halves(frame):
    return frame[frame["id"] <= 45], frame[frame["id"] > 45]


COUNTS = {
    "bool, then counts": (lambda k: k.astype(bool), lambda k: k),
    "counts, then bool": (lambda k: k, lambda k: k.astype(bool)),
    "small, then large": (lambda k: k.astype("int8"), lambda k: k + 1_000),
    "single precision, then a level": (lambda k: k.astype("float32"), lambda k: k + 1e9),
    "whole, then halves": (lambda k: k, lambda k: k + 0.5),
    "unsigned, then signed": (lambda k: k.astype("uint32"), lambda k: -k),
    "nullable, then plain": (lambda k: k.astype("Int64"), lambda k: k.astype("float64")),
}


@pytest.mark.parametrize("kind", list(COUNTS))
@pytest.mark.parametrize("form", ["frames", "parquet", "csv"])
def test_batches_of_other_types(frame, kind, form, tmp_path):
    """A batch is read as it is, whatever the first one was."""
    counts = np.random.default_rng(0).integers(0, 6, len(frame))
    counts[(frame["id"] <= 45).to_numpy()] %= 2
    one, other = halves(frame.assign(k=counts))
    changed = [part.assign(k=change(part["k"])) for part, change in zip((one, other), COUNTS[kind], strict=True)]
    whole = pd.concat([part.assign(k=part["k"].astype("float64")) for part in changed])
    if form == "frames":
        source = iter(changed)
    else:
        folder = tmp_path / "files"
        folder.mkdir()
        for i, part in enumerate(changed):
            part = part.assign(k=part["k"].astype(int)) if form == "csv" and part["k"].dtype == bool else part
            write = part.to_parquet if form == "parquet" else part.to_csv
            write(folder / f"{i}.{form}", index=False)
        source = folder
    packed = pack_choices(source, tmp_path / "pack", names=["k", "z"])
    np.testing.assert_allclose(coefficients(packed, ["k", "z"]), coefficients(whole, ["k", "z"]), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda part: part.assign(z=part["z"].round(1).astype(str)), "column 'z' is double first and large_string in"),
        (lambda part: part.assign(z=pd.Timestamp("2020-01-01")), "column 'z' is double first and timestamp"),
        (lambda part: part.assign(id=part["id"].astype(str)), "column 'id' is int64 first and large_string in frame 2"),
        (lambda part: part.assign(choice=part["choice"] * 2), "must hold 0/1"),
        (lambda part: part.assign(z=[{}, 1.0] * (len(part) // 2) + [{}] * (len(part) % 2)), "cannot be read as one"),
    ],
)
def test_batches_that_do_not_fit_together(frame, change, words, tmp_path):
    one, other = halves(frame)
    with pytest.raises(ChoiceDataError, match=re.escape(words)):
        pack_choices(iter([one, change(other)]), tmp_path / "pack", names=["x", "z"])
    assert not list(tmp_path.iterdir())


def test_a_text_file_that_begins_with_whole_numbers(frame, tmp_path, monkeypatch):
    """Types are guessed from its first rows: later ones are halves, and missing at first."""
    import pyarrow.dataset as dataset

    long = pd.concat([frame.assign(id=frame["id"] + 1_000 * i) for i in range(60)], ignore_index=True)
    long["k"] = np.arange(len(long)) % 3 + np.where(np.arange(len(long)) < len(long) - 300, 0.0, 0.5)
    text = long[["id", "situation", "alternative", "choice", "k", "z"]].to_csv(index=False)
    (tmp_path / "long.csv").write_text(re.sub(r"\.0,", ",", text))
    assert str(dataset.dataset(tmp_path / "long.csv", format="csv").schema.field("k").type) == "int64"
    packed = pack_choices(tmp_path / "long.csv", tmp_path / "pack", names=["k", "z"])
    np.testing.assert_allclose(coefficients(packed, ["k", "z"]), coefficients(long, ["k", "z"]), rtol=1e-4)


@pytest.mark.parametrize("text", ["", "id,situation\n1,2,3\n", "id,id\n1,2\n"])
def test_damaged_text_files_are_told(text, tmp_path):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ChoiceDataError):
        pack_choices(tmp_path / "bad.csv", tmp_path / "pack", names=["x"])


def test_categories_of_labels_may_differ(frame, tmp_path):
    parts = [part.assign(id=part["id"].astype(str).astype("category")) for part in halves(frame)]
    packed = pack_choices(iter(parts), tmp_path / "pack", names=["x", "z"])
    assert packed.n_decision_makers == 90
    np.testing.assert_allclose(coefficients(packed, ["x", "z"]), coefficients(frame, ["x", "z"]), rtol=1e-4)


# -- labels ----------------------------------------------------------------------------------------

DAYS = [dt.datetime(2020, 1, day) for day in (1, 2, 3)]
ALTERNATIVES = {
    "whole numbers": [1, 2, 3],
    "several kinds": [1, "b", 2],
    "days": DAYS,
    "nanoseconds": list(pd.to_datetime(DAYS).as_unit("ns")),
    "true or false": [False, True, "neither"],
}


@pytest.mark.parametrize("kind", list(ALTERNATIVES))
def test_labels_of_alternatives_in_packs(frame, kind, tmp_path):
    """Constants have the same names, bases are found, and frames of the same labels are predicted."""
    labels = dict(zip(["a1", "a2", "a3"], ALTERNATIVES[kind], strict=True))
    column = pd.Series([labels[a] for a in frame["alternative"]], dtype=object).infer_objects()
    named = frame.assign(alternative=column.to_numpy())
    request = {"constants": True, "base_alternative": ALTERNATIVES[kind][1]}
    plain = MixedLogit(fixed=["x", f"asc.{labels['a1']}"], method="msle", **request).fit(named)
    source = named if kind != "several kinds" else MixedLogit(fixed=["x"], method="msle").fit(named) and named
    if kind in ("several kinds", "true or false"):
        # pyarrow has no columns of several kinds.
        from mxlogit.choices import read_frame
        from mxlogit.spec import Columns

        source = read_frame(named, Columns("id", "situation", "alternative", "choice"), ["x"]).data
    packed = pack_choices(source, tmp_path / "pack", names=["x"])
    est = MixedLogit(fixed=["x", f"asc.{labels['a1']}"], method="msle", **request).fit(packed)
    np.testing.assert_allclose(est.coef_, plain.coef_, rtol=1e-4)
    np.testing.assert_allclose(est.predict_proba(named), plain.predict_proba(named), atol=1e-5)


@pytest.mark.parametrize("base", [pd.NA, np.array([1, 2]), 7, "1", None.__class__, [1]])
def test_a_base_that_is_no_alternative(frame, base):
    numbered = frame.assign(alternative=frame["alternative"].str[1:].astype(int))
    with pytest.raises(ChoiceDataError, match=r"base_alternative .* is not among the alternatives"):
        coefficients(numbered, ["x"], constants=True, base_alternative=base)


@pytest.mark.parametrize("base", [2.0, np.int32(2), Decimal(2)])
def test_a_base_that_equals_an_alternative(frame, base):
    numbered = frame.assign(alternative=frame["alternative"].str[1:].astype(int))
    wanted = coefficients(numbered, ["x"], constants=True, base_alternative=2)
    pd.testing.assert_series_equal(coefficients(numbered, ["x"], constants=True, base_alternative=base), wanted)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_labels_keep_their_time_zone(frame, library):
    days = pd.to_datetime("2020-01-01") + pd.to_timedelta(frame["id"], unit="D")
    zoned = frame.assign(id=days.dt.tz_localize("Asia/Tokyo"))
    data = zoned if library == "pandas" else pl.from_pandas(zoned)
    est = MixedLogit(fixed=["x"], random=["z"], method="msle", random_state=0).fit(data)
    tastes = est.individual_coefficients()
    assert set(tastes.index) == set(zoned["id"])
    assert est.predict(data).index.get_level_values(0).isin(zoned["id"]).all()
    assert len(est.predict_proba(data, tastes="individual")) == len(frame)


def test_unknown_days_are_spelled_as_days(frame):
    days = pd.to_datetime("2020-01-01") + pd.to_timedelta(frame["id"], unit="D")
    dated = frame.assign(id=days.dt.as_unit("ns"))
    est = MixedLogit(fixed=["x"], random=["z"], method="msle").fit(dated[dated["id"] < "2020-02-20"])
    with pytest.raises(ChoiceDataError, match=r"first: \[Timestamp\('2020-02-20"):
        est.predict_proba(dated, tastes="individual")


# -- one value per row -----------------------------------------------------------------------------


def test_masked_values_are_refused(frame):
    weights = np.ma.masked_array(np.where(frame["id"] == 1, 999.0, 1.0), mask=frame["id"] == 1)
    with pytest.raises(ChoiceDataError, match="sample_weight is a masked array, and 9 values are masked"):
        MixedLogit(fixed=["x"], method="msle").fit(frame, sample_weight=weights)
    with pytest.raises(ChoiceDataError, match="y is a masked array"):
        MixedLogit(fixed=["x"], method="msle").fit(frame, np.ma.masked_array(frame["choice"], mask=frame["id"] == 1))


def test_values_of_a_repeated_index_in_another_order_are_refused(frame):
    indexed = frame.set_index(np.arange(len(frame)) // 3)
    y = indexed["choice"]
    MixedLogit(fixed=["x"], method="msle").fit(indexed, y)
    MixedLogit(fixed=["x"], method="msle").fit(indexed, y.reset_index(drop=True))
    with pytest.raises(ChoiceDataError, match="in another order"):
        MixedLogit(fixed=["x"], method="msle").fit(indexed, y[::-1])


# -- wide frames -----------------------------------------------------------------------------------

WIDE = pd.DataFrame({"id": [1, 1, 2], "took": ["b", "c", "b"], "tb": [1, 2, 3], "tc": [2, 2, 4]})
SOURCES = {"time": {"b": "tb", "c": "tc"}}


def test_signed_and_unsigned_sources_of_one_attribute():
    wide = WIDE.assign(tb=np.array([2**62 + 41, 5, 6], dtype="uint64"))
    assert wide_to_long(wide, SOURCES, choice="took")["time"].tolist() == [2**62 + 41, 2, 5, 2, 6, 4]


def test_whole_numbers_with_holes_stay_whole():
    table = pl.DataFrame({**WIDE.to_dict("list"), "tb": [2**62 + 41, None, 6]})
    assert wide_to_long(table, SOURCES, choice="took")["time"].tolist()[::2] == [2**62 + 41, pd.NA, 6]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"attributes": {"time": {}}}, "attributes name no alternative"),
        ({"availability": ["tb"]}, "availability must be a mapping"),
        ({"keep": [["a"]]}, "keep must be a list of column names"),
        ({"availability": {"b": "hole"}}, "column 'hole' has 1 missing values (rows 1)"),
    ],
)
def test_wide_frames_that_cannot_be_read(request_, words):
    wide = WIDE.assign(hole=[1.0, np.nan, 0.0])
    with pytest.raises(ChoiceDataError, match=re.escape(words)):
        wide_to_long(wide, **{"attributes": SOURCES, "choice": "took", **request_})


def test_decimals_and_alternatives_that_are_always_there():
    long = wide_to_long(WIDE, {"time": {"b": Decimal("1.5"), "c": "tc"}}, choice="took", availability={"b": None})
    assert long["available"].all()
    assert [float(x) for x in long["time"]] == [1.5, 2.0, 1.5, 2.0, 1.5, 4.0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"names": None}, "names must be a list of names; got None"),
        ({"decision_makers": 5}, "decision_makers must be a vector of labels; got 5"),
        ({"decision_makers": [[1], {2}]}, "decision_makers must be"),
    ],
)
def test_labels_of_arrays_that_are_none(given, words):
    request = {"names": ["x"], **given}
    with pytest.raises(ChoiceDataError, match=re.escape(words)):
        ChoiceData.from_arrays(np.zeros((2, 1, 2, 1)), np.zeros((2, 1), int), **request)


def test_tuples_are_labels_of_arrays():
    data = ChoiceData.from_arrays(
        np.zeros((2, 1, 2, 1)), np.zeros((2, 1), int), names=["x"], decision_makers=[(1, 2), (1, 3)]
    )
    assert data.decision_makers.tolist() == [(1, 2), (1, 3)]


# -- settings and weights --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (VI(max_iterations=2.5), "VI(max_iterations=...) must be a whole number"),
        (VI(n_samples=1_000.0), "VI(n_samples=...) must be a whole number"),
        (VI(polish=2.5), "VI(polish=...) must be a whole number"),
        (VI(flow_layers=1.5), "VI(flow_layers=...) must be a whole number"),
        (VI(tolerance=np.inf), "VI(tolerance=...) must be finite"),
        (MSLE(tolerance=np.inf), "MSLE(tolerance=...) must be finite"),
        (MSLE(antithetic="yes"), "MSLE(antithetic=...) must be True or False"),
        (MSLE(check_draws="no"), "MSLE(check_draws=...) must be True or False"),
    ],
)
def test_settings_that_are_something_else(frame, method, words):
    with pytest.raises(SpecificationError, match=re.escape(words)):
        MixedLogit(fixed=["x"], method=method).fit(frame)


def test_whole_numbers_of_numpy_are_whole(frame):
    method = VI(draws=np.int64(16), tail=np.int64(8), n_samples=np.int32(50))
    assert np.isfinite(MixedLogit(fixed=["x"], method=method).fit(frame).coef_).all()


@pytest.mark.parametrize("factor", [1e-300, 1e-12, 1e12, 1e300])
def test_weights_that_are_no_counts(frame, factor):
    weighted = frame.assign(w=factor * (1 + frame["id"] % 3))
    for method in ("vi", "msle", "mcmc"):
        with pytest.raises(ChoiceDataError, match="a weight is a number of decision makers, from 1e-09 to 1e"):
            MixedLogit(fixed=["x"], weights="w", weights_sum="given", method=method).fit(weighted)
    relative = MixedLogit(fixed=["x"], weights="w", weights_sum="n", method="msle").fit(weighted)
    plain = MixedLogit(fixed=["x"], weights="w", weights_sum="n", method="msle").fit(
        weighted.assign(w=weighted["w"] / factor)
    )
    np.testing.assert_allclose(relative.coef_, plain.coef_, rtol=1e-6)


def test_equal_weights_scaled_to_one_are_whole(frame):
    for weight in (49.0, 3.0, 1 / 300, 0.1):
        method = MCMC(warmup=10, samples=10, chains=2)
        est = MixedLogit(fixed=["x"], weights="w", weights_sum="n", dtype="float64", method=method, random_state=0)
        assert np.isfinite(est.fit(frame.assign(w=weight)).coef_).all()


def test_weights_that_repeat_too_many_people(frame):
    est = MixedLogit(fixed=["x"], weights="w", weights_sum="given", method=MCMC(warmup=10, samples=10))
    with pytest.raises(SpecificationError, match=r"as often as the weight says: 9e[+]07 times in all"):
        est.fit(frame.assign(w=1e6))


@pytest.mark.parametrize("statistic", ["mean", None, 0.5, [2.0], ["median"]])
def test_statistics_that_are_none(frame, statistic):
    est = MixedLogit(random=["x"], method=MSLE(n_draws=20, check_draws=False)).fit(frame)
    with pytest.raises(SpecificationError, match=re.escape(f"got {statistic!r}")):
        est.individual_coefficients(statistic=statistic)


@pytest.mark.parametrize("scale", [1e-30, 1e-150])
def test_columns_too_small_for_single_precision(frame, scale):
    with pytest.raises(SpecificationError, match="vary by too little"):
        MixedLogit(fixed=["x"], method="msle").fit(frame.assign(x=frame["x"] * scale))


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: {**facts, "names": facts["names"][::-1]},
        lambda facts: {name: value for name, value in facts.items() if name != "people"},
        lambda facts: {**facts, "shards": [{**facts["shards"][0], "extra": 1}]},
        lambda facts: [facts],
    ],
)
def test_a_manifest_that_was_edited_is_refused(frame, change, tmp_path):
    pack_choices(frame, tmp_path / "pack", names=["x", "z"])
    manifest = tmp_path / "pack" / "manifest.json"
    manifest.write_text(json.dumps(change(json.loads(manifest.read_text()))))
    with pytest.raises(ChoiceDataError, match=r"changed since it was written|has format .list."):
        PackedChoices.open(tmp_path / "pack")


@pytest.mark.parametrize("path", [None, 3])
def test_a_pack_has_a_path(path):
    with pytest.raises(ChoiceDataError, match="opened by its path"):
        PackedChoices.open(path)


def test_a_pack_that_cannot_be_made(frame, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ChoiceDataError, match="cannot be created"):
        pack_choices(frame, tmp_path / "file" / "below", names=["x"])
    with pytest.raises(ChoiceDataError, match="dtype must be"):
        pack_choices(frame, tmp_path / "pack", names=["x"], dtype="float32")


LABELS = {
    "hashes of 64 bits": lambda i: 2**63 + i,
    "zeros in front": lambda i: f"00{i - 20}" if i > 20 else str(i),
    "twenty digits": lambda i: f"1234567890123456{i:04d}",
    "true and false": lambda i: {1: "true", 2: "false"}.get(i, f"person {i}"),
    "whole numbers": lambda i: i,
    "halves": lambda i: i + 0.5,
}


@pytest.mark.parametrize("kind", LABELS)
def test_people_of_a_text_file_are_those_of_the_frame(kind, tmp_path):
    """However their labels are written: numbers that are one where their text differs merged people."""
    frame, _ = simulate_choices(40, 3, 3, fixed={"x": 1.0}, random_state=0)
    frame = frame.assign(id=frame["id"].map(LABELS[kind]))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    packed = pack_choices(tmp_path / "rows.csv", tmp_path / "pack", names=["x"])
    assert packed.n_decision_makers == 40
    assert sorted(map(str, packed.decision_makers)) == sorted(map(str, frame["id"].unique()))
    if kind in ("whole numbers", "halves"):
        assert packed.decision_makers.dtype.kind in "if"


def test_a_word_for_missing_among_numbers_is_no_person(tmp_path):
    frame, _ = simulate_choices(10, 3, 3, fixed={"x": 1.0}, random_state=0)
    frame.assign(id=frame["id"].astype(str).replace({"5": "NA"})).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(ChoiceDataError, match="'id' of numbers has 9 labels that mean a missing value"):
        pack_choices(tmp_path / "rows.csv", tmp_path / "pack", names=["x"])


def test_text_files_of_numbers_and_of_text(tmp_path):
    frame, _ = simulate_choices(10, 3, 3, fixed={"x": 1.0}, random_state=0)
    (tmp_path / "rows").mkdir()
    frame.to_csv(tmp_path / "rows" / "a.csv", index=False)
    frame.assign(id=frame["id"].map("person {}".format)).to_csv(tmp_path / "rows" / "b.csv", index=False)
    packed = pack_choices(tmp_path / "rows", tmp_path / "pack", names=["x"])
    assert sorted(packed.decision_makers)[:2] == ["1", "10"]
    assert packed.n_decision_makers == 20


def test_a_text_file_still_needs_its_keys(tmp_path):
    frame, _ = simulate_choices(10, 3, 3, fixed={"x": 1.0}, random_state=0)
    frame["id"] = frame["id"].astype(object)
    frame.loc[7, "id"] = None
    frame.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(ChoiceDataError, match="'id' has 1 missing values"):
        pack_choices(tmp_path / "rows.csv", tmp_path / "pack", names=["x"])


def test_numbers_that_no_pack_holds_are_said(tmp_path):
    frame, _ = simulate_choices(5, 3, 3, fixed={"x": 1.0}, random_state=0)
    with pytest.raises(ChoiceDataError, match="more than 64 bits"):
        pack_choices(frame.assign(id=[2**64 + int(i) for i in frame["id"]]), tmp_path / "pack", names=["x"])


def test_polars_labels_that_differ_by_nanoseconds():
    """Instants with a time zone, times of the day and numbers of 128 bits are as many people as there are."""
    frame, _ = simulate_choices(20, 3, 3, fixed={"x": 1.0}, random_state=0)
    table = pl.DataFrame({name: frame[name].to_list() for name in frame})
    number = pl.col("id")
    instants = (pl.lit(0).cast(pl.Datetime("ns")) + pl.duration(nanoseconds=number)).alias("id")
    for labels in (
        instants,
        instants.dt.replace_time_zone("Europe/Berlin"),
        number.cast(pl.Time),
        number.cast(pl.Int128),
    ):
        est = MixedLogit(fixed=["x"], random_state=0, method=VI(correct=False, n_samples=50)).fit(
            table.with_columns(labels)
        )
        assert est.n_decision_makers_ == 20
    assert len(est.individual_coefficients(table.with_columns(labels))) == 20


def test_roles_of_choice_data_that_are_not_there_are_said(tmp_path):
    """Weights and clusters are columns of frames; data without them are fitted without, which is said."""
    frame, _ = simulate_choices(30, 3, 3, fixed={"x": 1.0}, random_state=0)
    packed = pack_choices(frame, tmp_path / "pack", names=["x"])
    with pytest.warns(ChoiceDataWarning, match="weights='q': all weights of these data are one"):
        MixedLogit(fixed=["x"], weights="q", method="msle").fit(packed)
    weighed = pack_choices(frame.assign(q=2.0), tmp_path / "weighed", names=["x"], weights="q")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChoiceDataWarning)
        MixedLogit(fixed=["x"], weights="q", weights_sum="given", method="msle").fit(weighed)
    with pytest.warns(ConvergenceWarning, match="cluster='g' has no effect with MSLE"):
        MixedLogit(fixed=["x"], cluster="g", method="msle").fit(frame.assign(g=frame["id"] % 7))


def test_a_device_that_computes_nothing_is_refused():
    frame, _ = simulate_choices(5, 3, 3, fixed={"x": 1.0}, random_state=0)
    with pytest.raises(SpecificationError, match="'meta' computes nothing"):
        MixedLogit(fixed=["x"], device="meta").fit(frame)
