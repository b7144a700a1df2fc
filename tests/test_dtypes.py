"""Columns of every type of every frame library: numbers are read as numbers, labels and dates are not."""

import datetime as dt
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from mxlogit import VI, ChoiceData, ChoiceDataError, MixedLogit, SpecificationError, pack_choices
from mxlogit.choices import read_frame
from mxlogit.spec import Columns

COLUMNS = Columns("id", "situation", "alternative", "choice", availability="open", weights="w")
N, J = 12, 3
WHOLE = np.array([3, 1, 2, 5, 4, 0, 1, 2, 3, 7, 1, 0] * J)


def keys():
    """Twelve people, one situation each, three alternatives; the last is unavailable in one."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 2, N)
    return {
        "id": np.repeat(np.arange(N), J),
        "situation": np.zeros(N * J, dtype=int),
        "alternative": np.tile(np.array(["a", "b", "c"]), N),
        "choice": (chosen[:, None] == np.arange(J)).ravel(),
        "open": (np.arange(N * J) != 5).astype(int),
        "w": np.repeat(1.0 + np.arange(N), J),
    }


def in_pandas(values):
    return pd.DataFrame({**keys(), "x": values})


def in_polars(series):
    return pl.DataFrame({**keys(), "x": series})


def in_arrow(array):
    return pa.table({**{name: pa.array(values) for name, values in keys().items()}, "x": array})


def holes(values, hole=None):
    """The values with a hole in the row of the unavailable alternative."""
    return [hole if row == 5 else value for row, value in enumerate(values)]


LIST = WHOLE.tolist()
FLAGS = WHOLE > 2
NUMBERS = {
    **{
        f"pandas {kind}": (lambda k=kind: in_pandas(pd.Series(WHOLE).astype(k)), WHOLE)
        for kind in (
            *(
                "int8",
                "int16",
                "int32",
                "int64",
                "uint8",
                "uint16",
                "uint32",
                "uint64",
                "float16",
                "float32",
                "float64",
            ),
            *("Int8", "Int64", "UInt16", "UInt64", "Float32", "Float64", "object", "Sparse[int]", "Sparse[float]"),
            *("int64[pyarrow]", "uint8[pyarrow]", "float[pyarrow]", "double[pyarrow]"),
        )
    },
    **{
        f"pandas {kind} with a hole": (lambda k=kind: in_pandas(pd.array(holes(LIST), dtype=k)), WHOLE)
        for kind in ("Int64", "UInt8", "Float32", "int64[pyarrow]", "double[pyarrow]", "object")
    },
    **{
        f"pandas {kind}": (lambda k=kind: in_pandas(pd.Series(FLAGS).astype(k)), FLAGS)
        for kind in ("bool", "boolean", "bool[pyarrow]", "object")
    },
    **{
        f"pandas {kind} with a hole": (lambda k=kind: in_pandas(pd.array(holes(FLAGS.tolist()), dtype=k)), FLAGS)
        for kind in ("boolean", "bool[pyarrow]")
    },
    "pandas big-endian": (lambda: in_pandas(WHOLE.astype(">f8")), WHOLE),
    "pandas decimals": (lambda: in_pandas([Decimal(v) for v in LIST]), WHOLE),
    "pandas arrow decimals": (
        lambda: in_pandas(pd.array(holes([Decimal(v) for v in LIST]), dtype=pd.ArrowDtype(pa.decimal128(10, 2)))),
        WHOLE,
    ),
    "pandas mixed objects": (
        lambda: in_pandas(np.array([[int, float, np.int64, Decimal][i % 4](v) for i, v in enumerate(LIST)], object)),
        WHOLE,
    ),
    "pandas object with NA": (lambda: in_pandas(np.array(holes(LIST, pd.NA), object)), WHOLE),
    **{
        f"polars {kind}": (lambda k=kind: in_polars(pl.Series(LIST).cast(k)), WHOLE)
        for kind in (
            *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
            *(pl.Float32, pl.Float64, pl.Decimal(10, 2)),
        )
    },
    **{
        f"polars {kind} with a hole": (lambda k=kind: in_polars(pl.Series(holes(LIST)).cast(k)), WHOLE)
        for kind in (pl.Int8, pl.Int64, pl.Int128, pl.Float32, pl.Decimal(10, 2))
    },
    "polars Boolean": (lambda: in_polars(pl.Series(FLAGS.tolist())), FLAGS),
    "polars Boolean with a hole": (lambda: in_polars(pl.Series(holes(FLAGS.tolist()))), FLAGS),
    "polars Object": (lambda: in_polars(pl.Series(LIST, dtype=pl.Object)), WHOLE),
    **{
        f"pyarrow {kind}": (lambda k=kind: in_arrow(pa.array(LIST, k)), WHOLE)
        for kind in (
            *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
            *(pa.float32(), pa.float64(), pa.decimal128(10, 2), pa.decimal256(50, 2)),
        )
    },
    "pyarrow halffloat": (lambda: in_arrow(pa.array(WHOLE.astype("float16"))), WHOLE),
    **{
        f"pyarrow {kind} with a hole": (lambda k=kind: in_arrow(pa.array(holes(LIST), k)), WHOLE)
        for kind in (pa.int8(), pa.uint64(), pa.float64(), pa.decimal128(10, 2))
    },
    "pyarrow bool": (lambda: in_arrow(pa.array(FLAGS)), FLAGS),
    "pyarrow bool with a hole": (lambda: in_arrow(pa.array(holes(FLAGS.tolist()))), FLAGS),
    "pyarrow chunks": (lambda: in_arrow(pa.chunked_array([LIST[:7], LIST[7:]])), WHOLE),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_every_type_are_read(kind):
    make, right = NUMBERS[kind]
    data = read_frame(make(), COLUMNS, ["x"]).data
    expected = np.where(keys()["open"], right, 0).reshape(N, 1, J, 1).astype(float)
    np.testing.assert_array_equal(data.attributes.numpy(), expected)
    assert data.attributes.dtype == torch.float64


TEXT = [str(v) for v in LIST]
DAYS = [dt.date(2020, 1, 1 + v) for v in LIST]
TIMES = [dt.datetime(2020, 1, 1 + v) for v in LIST]
SPANS = [dt.timedelta(v) for v in LIST]
LABELS = {
    "pandas category of whole numbers": lambda: in_pandas(pd.Categorical(LIST)),
    "pandas ordered category": lambda: in_pandas(pd.Categorical(LIST, ordered=True)),
    "pandas category of floats": lambda: in_pandas(pd.Categorical(WHOLE * 0.5)),
    "pandas category of text": lambda: in_pandas(pd.Categorical(TEXT)),
    "pandas category of flags": lambda: in_pandas(pd.Categorical(FLAGS)),
    "pandas arrow dictionary": lambda: in_pandas(
        pd.Series(pa.array(LIST).dictionary_encode(), dtype=pd.ArrowDtype(pa.dictionary(pa.int64(), pa.int64())))
    ),
    "pandas text": lambda: in_pandas(TEXT),
    "pandas object text": lambda: in_pandas(np.array(TEXT, object)),
    "pandas string": lambda: in_pandas(pd.Series(TEXT, dtype="string")),
    "pandas arrow string": lambda: in_pandas(pd.Series(TEXT, dtype="string[pyarrow]")),
    "pandas one text among numbers": lambda: in_pandas(np.array([*LIST[:-1], "1"], object)),
    "pandas bytes": lambda: in_pandas([b"1"] * len(LIST)),
    "pandas complex": lambda: in_pandas(WHOLE + 1j),
    "pandas interval": lambda: in_pandas(pd.cut(WHOLE, 3).astype("object")),
    "pandas lists": lambda: in_pandas([[v] for v in LIST]),
    "polars Categorical": lambda: in_polars(pl.Series(TEXT, dtype=pl.Categorical)),
    "polars Enum": lambda: in_polars(pl.Series(TEXT, dtype=pl.Enum(sorted(set(TEXT))))),
    "polars String": lambda: in_polars(pl.Series(TEXT)),
    "polars Binary": lambda: in_polars(pl.Series([b"1"] * len(LIST))),
    "polars List": lambda: in_polars(pl.Series([[v] for v in LIST])),
    "pyarrow dictionary of numbers": lambda: in_arrow(pa.array(LIST).dictionary_encode()),
    "pyarrow dictionary of text": lambda: in_arrow(pa.array(TEXT).dictionary_encode()),
    "pyarrow string": lambda: in_arrow(pa.array(TEXT)),
    "pyarrow large string": lambda: in_arrow(pa.array(TEXT, pa.large_string())),
    "pyarrow binary": lambda: in_arrow(pa.array([b"1"] * len(LIST))),
    "pyarrow struct": lambda: in_arrow(pa.array([{"v": v} for v in LIST])),
}
DATES = {
    "pandas datetime64": lambda: in_pandas(pd.to_datetime(TIMES)),
    "pandas datetime64[s]": lambda: in_pandas(pd.Series(TIMES).astype("datetime64[s]")),
    "pandas time zone": lambda: in_pandas(pd.Series(TIMES).dt.tz_localize("Europe/Berlin")),
    "pandas timedelta": lambda: in_pandas(pd.to_timedelta(LIST, unit="D")),
    "pandas dates": lambda: in_pandas(DAYS),
    "pandas arrow dates": lambda: in_pandas(pd.array(DAYS, dtype=pd.ArrowDtype(pa.date32()))),
    "pandas spans as objects": lambda: in_pandas(np.array(SPANS, object)),
    "pandas numpy spans as objects": lambda: in_pandas(
        pd.Series([np.timedelta64(v, "s") for v in LIST] + [None], dtype=object)[:-1].array
    ),
    "polars Date": lambda: in_polars(pl.Series(DAYS)),
    "polars Datetime": lambda: in_polars(pl.Series(TIMES)),
    "polars Duration": lambda: in_polars(pl.Series(SPANS)),
    "polars Time": lambda: in_polars(pl.Series([dt.time(v) for v in LIST])),
    "pyarrow date32": lambda: in_arrow(pa.array(DAYS)),
    "pyarrow timestamp": lambda: in_arrow(pa.array(TIMES, pa.timestamp("us", "UTC"))),
    "pyarrow duration": lambda: in_arrow(pa.array(SPANS)),
    "pyarrow time32": lambda: in_arrow(pa.array([dt.time(v) for v in LIST], pa.time32("s"))),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_no_numbers(kind):
    with pytest.raises(ChoiceDataError, match=r"column 'x' holds text or dates or other labels.*dummies"):
        read_frame(LABELS[kind](), COLUMNS, ["x"])


@pytest.mark.parametrize("kind", DATES)
def test_dates_and_spans_are_no_numbers(kind):
    with pytest.raises(ChoiceDataError, match=r"column 'x' holds text or dates.*such as seconds or days"):
        read_frame(DATES[kind](), COLUMNS, ["x"])


def test_text_is_found_in_any_row():
    """One text among 3,000 numbers, before and after row 1,000."""
    count = 1_000
    frame = pd.DataFrame(
        {
            "id": np.repeat(np.arange(count), J),
            "situation": 0,
            "alternative": np.tile(np.arange(J), count),
            "choice": np.tile([1, 0, 0], count),
            "x": np.arange(3.0 * count).astype(object),
        }
    )
    columns = Columns("id", "situation", "alternative", "choice")
    for row in (0, 999, 1_000, 2_999):
        one = frame.copy()
        one.loc[row, "x"] = "7"
        with pytest.raises(ChoiceDataError, match=rf"1 of its 3000 values .*first '7'.*person {row // J}, "):
            read_frame(one, columns, ["x"])


def test_a_category_is_refused_everywhere(tmp_path):
    frame = in_pandas(pd.Categorical(LIST))
    with pytest.raises(ChoiceDataError, match=r"a category.*dummies"):
        pack_choices(frame, tmp_path / "pack", names=["x"], availability="open")
    with pytest.raises(ChoiceDataError, match=r"weights must be numbers.*a category"):
        read_frame(frame.assign(w=pd.Categorical(frame["w"])), COLUMNS, [])
    with pytest.raises(ChoiceDataError, match=r"weights must be numbers.*a category"):
        read_frame(frame, COLUMNS, [], weights=pd.Series(pd.Categorical(frame["w"])))


def test_categories_are_labels_of_keys_and_flags():
    """Where labels are wanted, and where 0 and 1 are the only values, categories have one meaning."""
    plain = in_pandas(WHOLE)
    names = ["id", "situation", "alternative", "choice", "open"]
    categories = plain.assign(**{name: pd.Categorical(plain[name]) for name in names})
    one, two = read_frame(plain, COLUMNS, ["x"]).data, read_frame(categories, COLUMNS, ["x"]).data
    for field in ("attributes", "available", "observed", "chosen", "weights"):
        torch.testing.assert_close(getattr(one, field), getattr(two, field), atol=0, rtol=0)
    assert one.alternatives.tolist() == two.alternatives.tolist()


FLAG_KINDS = {
    "bool": lambda v: v.astype(bool),
    "int8": lambda v: v.astype("int8"),
    "float": lambda v: v.astype(float),
    "boolean": lambda v: v.astype("boolean"),
    "Int64": lambda v: v.astype("Int64"),
    "arrow": lambda v: v.astype("bool[pyarrow]"),
    "object": lambda v: v.astype(bool).astype(object),
}


@pytest.mark.parametrize("kind", FLAG_KINDS)
def test_choices_and_availability_of_every_type(kind):
    frame = in_pandas(WHOLE)
    right = read_frame(frame, COLUMNS, ["x"]).data
    changed = frame.assign(choice=FLAG_KINDS[kind](frame["choice"]), open=FLAG_KINDS[kind](frame["open"]))
    for data in (
        read_frame(changed, COLUMNS, ["x"]).data,
        read_frame(frame.drop(columns="choice"), COLUMNS, ["x"], chosen=changed["choice"]).data,
        read_frame(frame, COLUMNS, ["x"], chosen=changed["choice"].to_list()).data,
        read_frame(frame, COLUMNS, ["x"], chosen=pl.Series(changed["choice"].to_list())).data,
        read_frame(frame, COLUMNS, ["x"], chosen=pa.array(changed["choice"].to_list())).data,
    ):
        assert (data.chosen == right.chosen).all()
        assert (data.available == right.available).all()


@pytest.mark.parametrize("column", ["choice", "open"])
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_flags_are_counted_and_placed(column, missing):
    frame = in_pandas(WHOLE)
    frame[column] = frame[column].astype(object)
    frame.loc[[4, 30], column] = missing
    with pytest.raises(
        ChoiceDataError,
        match=rf"{column}.* has 2 missing values \(person 1, situation 0, 'b'; person 10, situation 0, 'a'\)",
    ):
        read_frame(frame, COLUMNS, ["x"])


def test_missing_values_of_y_are_counted_and_placed():
    frame = in_pandas(WHOLE)
    y = frame["choice"].astype("boolean")
    y[4] = pd.NA
    with pytest.raises(ChoiceDataError, match=r"has 1 missing values \(person 1, situation 0, 'b'\)"):
        read_frame(frame, COLUMNS, ["x"], chosen=y)


@pytest.mark.parametrize("kind", ["int64", "uint64", "float64"])
@pytest.mark.parametrize("size", [2**53 + 2, 2**62])
def test_large_whole_numbers_of_every_type_are_alike(kind, size):
    """Read, whatever their type: only differences between alternatives matter."""
    frame = in_pandas((np.arange(N * J) * 2**20 + size).astype(kind))
    x = read_frame(frame, COLUMNS, ["x"]).data.attributes[..., 0]
    apart = np.arange(J) * 2.0**20
    # The last alternative of the second person is unavailable.
    others = [person for person in range(N) if person != 1]
    np.testing.assert_array_equal((x - x[..., :1])[others, 0], np.tile(apart, (N - 1, 1)))


@pytest.mark.parametrize("kind", ["int64", "float64"])
def test_differences_that_overflow_are_refused(kind):
    frame = in_pandas((np.arange(N * J) * 2**55).astype(kind))
    with pytest.raises(ChoiceDataError, match=r"'x' differs by up to 7e\+16 within.*rescale"):
        read_frame(frame, COLUMNS, ["x"])
    cells = frame["x"].to_numpy().reshape(N, 1, J, 1)
    with pytest.raises(ChoiceDataError, match=r"'x' differs by up to 7e\+16 within.*rescale"):
        ChoiceData.from_arrays(cells, np.zeros((N, 1), int), names=["x"])


# -- labels in the fit and afterwards --------------------------------------------------------------

STAMPS = pd.date_range("2020-01-01", periods=N).repeat(J)
SAME_LABELS = {
    "dates in other units": (STAMPS.astype("datetime64[us]"), STAMPS.astype("datetime64[ns]")),
    "dates as objects": (STAMPS.astype("datetime64[ns]"), STAMPS.astype("datetime64[s]").astype(object)),
    "dates in one time zone": (STAMPS.tz_localize("Asia/Tokyo"), STAMPS.tz_localize("Asia/Tokyo").as_unit("ns")),
    "whole numbers as floats": (np.repeat(np.arange(N), J), np.repeat(np.arange(N), J).astype(float)),
    "whole numbers of other sizes": (np.repeat(np.arange(N), J), np.repeat(np.arange(N), J).astype("uint8")),
    "nullable numbers": (np.repeat(np.arange(N), J), pd.array(np.repeat(np.arange(N), J), dtype="Int32")),
    "large numbers": (np.repeat(np.arange(N), J) + 2**60, pd.array(np.repeat(np.arange(N), J) + 2**60, dtype="Int64")),
    "text of two types": (np.repeat(list("abcdefghijkl"), J), pd.array(np.repeat(list("abcdefghijkl"), J), "string")),
    "text and a category": (np.repeat(list("abcdefghijkl"), J), pd.Categorical(np.repeat(list("abcdefghijkl"), J))),
    "numbers and text": (
        np.repeat(np.array([*range(6), *"abcdef"], object), J),
        np.repeat(np.array([*range(6), *"abcdef"], object), J),
    ),
    "flags": (np.repeat(np.arange(2) > 0, N // 2 * J), np.repeat(np.arange(2) > 0, N // 2 * J).astype(object)),
    "pairs": (
        pd.Series([(i, "p") for i in range(N) for _ in range(J)]),
        pd.Series([(i, "p") for i in range(N) for _ in range(J)]),
    ),
}


@pytest.fixture(scope="module")
def plain():
    return in_pandas(np.random.default_rng(2).normal(size=N * J))


def fit_labelled(frame, labels):
    labelled = frame.assign(id=labels, situation=np.arange(N).repeat(J))
    est = MixedLogit(fixed=["x"], random_state=0, method=VI(draws=16, n_samples=10, correct=False))
    return est.fit(labelled), labelled


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
@pytest.mark.parametrize("kind", SAME_LABELS)
def test_people_are_found_again_whatever_the_type_of_their_labels(plain, kind):
    first, second = SAME_LABELS[kind]
    est, labelled = fit_labelled(plain, first)
    data = read_frame(labelled.assign(id=second), replace(COLUMNS, weights=None), ["x"]).data
    count = len(pd.Series(first).unique())
    assert est._fitted.positions(data.decision_makers).tolist() == list(range(count))
    assert est.predict_proba(labelled.assign(id=second), tastes="individual").notna().all()
    assert len(est.individual_coefficients()) == count


OTHER_LABELS = {
    "text for numbers": (
        np.repeat(np.arange(N), J),
        np.repeat(np.arange(N), J).astype(str),
        r"another type: 0 \(int\), not '0' \(str\)",
    ),
    "numbers for text": (
        np.repeat(np.arange(N), J).astype(str),
        np.repeat(np.arange(N), J),
        r"'0' \(str\), not 0 \(int\)",
    ),
    "other people": (np.repeat(np.arange(N), J), np.repeat(np.arange(N), J) + 100, r"first: \[100, 101"),
}


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
@pytest.mark.parametrize("kind", OTHER_LABELS)
def test_people_who_are_not_found_are_explained(plain, kind):
    first, second, words = OTHER_LABELS[kind]
    est, labelled = fit_labelled(plain, first)
    with pytest.raises(ChoiceDataError, match="12 decision makers were not in the fit.*" + words):
        est.predict_proba(labelled.assign(id=second), tastes="individual")


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_alternatives_of_another_type_are_explained(plain):
    numbered = plain.assign(alternative=plain["alternative"].map({"a": 1, "b": 2, "c": 3}))
    est = MixedLogit(fixed=["x"], constants=True, random_state=0, method=VI(n_samples=100)).fit(numbered)
    text = numbered.assign(alternative=numbered["alternative"].astype(str))
    with pytest.raises(
        ChoiceDataError, match=r"\['1', '2', '3'\] were not in .*\[1, 2, 3\].*1 \(int\), not '1' \(str\)"
    ):
        est.predict_proba(text)
    with pytest.raises(ChoiceDataError, match=r"Did you mean 2 \(int\), not '2' \(str\)"):
        MixedLogit(fixed=["x"], constants=True, base_alternative="2").fit(numbered)


KEYS = {
    "None": (lambda ids: np.where(np.arange(len(ids)) == 7, None, ids), r"'id' has 1 missing values \(rows 7\)"),
    "nan": (lambda ids: np.where(np.arange(len(ids)) == 7, np.nan, ids), r"'id' has 1 missing values \(rows 7\)"),
    "NA": (lambda ids: pd.array([*ids[:-1], None], dtype="Int64"), r"'id' has 1 missing values \(rows 35\)"),
    "NaT": (lambda ids: pd.Series([pd.NaT, *STAMPS[1:]]), r"'id' has 1 missing values \(rows 0\)"),
    "all": (lambda ids: [None] * len(ids), r"'id' has 36 missing values \(rows 0; 1; 2; 3; 4; \.\.\.\)"),
    "lists": (lambda ids: [[i] for i in ids], "'id' holds .*keys must be numbers, text or dates"),
    "dicts": (lambda ids: [{"i": i} for i in ids], "'id' holds .*keys must be numbers, text or dates"),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_that_cannot_be_keys_are_explained(plain, case):
    spoil, words = KEYS[case]
    with pytest.raises(ChoiceDataError, match=words):
        read_frame(plain.assign(id=spoil(plain["id"].to_numpy())), COLUMNS, ["x"])


def test_names_from_any_ordered_collection(plain):
    frame = plain.assign(z=np.random.default_rng(3).normal(size=N * J))
    right = MixedLogit(fixed=["x", "z"], random_state=0).fit(frame).coef_
    for names in (
        ("x", "z"),
        np.array(["x", "z"]),
        np.array(["x", "z"], object),
        pd.Index(["x", "z"]),
        pd.Series(["x", "z"]),
        frame[["x", "z"]].columns,
        {"x": 1, "z": 2}.keys(),
        pl.Series(["x", "z"]),
    ):
        est = MixedLogit(fixed=names, random_state=0)
        pd.testing.assert_series_equal(est.fit(frame).coef_, right)
        assert "fixed" in repr(est)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"x", "z"}, "A set has no order"),
        (frozenset({"x"}), "A set has no order"),
        ("x", r"write \['x'\]"),
        (np.array("x"), "must be a list of column names"),
        (np.array([["x"]]), "must be a list of column names"),
        ([0], r"column names \(strings\); got \[0\].*frame.rename"),
        (np.array([0, 1]), r"column names \(strings\)"),
        (pd.Index(["x", "x"]), r"lists \['x'\] more than once"),
        (None, "must be a list of column names"),
        (3, "must be a list of column names"),
        ([None], "column names"),
        ([("x", "z")], "column names"),
    ],
)
@pytest.mark.parametrize("argument", ["fixed", "random"])
def test_names_that_are_no_names_are_explained(plain, argument, names, words):
    with pytest.raises(SpecificationError, match=words):
        MixedLogit(**{argument: names}).fit(plain)
