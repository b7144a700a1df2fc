"""Wide frames to long ones: of every library, with every name that could collide, with and without choices."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mxlogit import ChoiceDataError, MixedLogit, wide_to_long

SOURCES = {"time": {"bus": "tb", "car": "tc"}, "toll": {"bus": 0.0, "car": "toll"}}


def make_wide(n=30, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "id": np.arange(n) // 3,
            "tb": rng.integers(10, 60, n),
            "tc": rng.integers(10, 60, n),
            "toll": rng.uniform(0.0, 3.0, n),
            "age": rng.integers(18, 80, n),
            "open": rng.integers(0, 2, n),
        }
    )
    return frame.assign(
        chosen=np.where(rng.random(n) < 0.5, "bus", "car"), open=lambda f: f["open"] | (f["chosen"] == "car")
    )


def by_hand(wide):
    """The long frame, row after row."""
    rows, counted = [], {}
    for row in wide.to_dict("records"):
        number = counted.setdefault(row["id"], 0)
        counted[row["id"]] += 1
        for mode, time, toll, is_open in (
            ("bus", row["tb"], 0.0, True),
            ("car", row["tc"], row["toll"], bool(row["open"])),
        ):
            rows.append((row["id"], number, mode, row["chosen"] == mode, is_open, time, toll, row["age"]))
    return pd.DataFrame(rows, columns=["id", "situation", "alternative", "choice", "available", "time", "toll", "age"])


LIBRARIES = {
    "pandas": lambda frame: frame,
    "pandas with an index": lambda frame: frame.set_index(pd.Index(np.arange(len(frame))[::-1] * 7)),
    "pandas of arrow": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "pandas nullable": lambda frame: frame.convert_dtypes(),
    "polars": lambda frame: pl.DataFrame(frame.to_dict("list")),
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
}


def maximum_likelihood(long):
    return MixedLogit(fixed=["time", "toll"], availability="available", method="msle", random_state=0).fit(long)


@pytest.fixture(scope="module")
def coefficients_by_hand():
    return maximum_likelihood(by_hand(make_wide())).coef_


@pytest.mark.parametrize("library", LIBRARIES)
def test_wide_frames_of_every_library(library, coefficients_by_hand):
    wide = make_wide()
    given = LIBRARIES[library](wide)
    long = wide_to_long(given, SOURCES, choice="chosen", availability={"car": "open"}, keep=["age"])
    pd.testing.assert_frame_equal(long, by_hand(wide), check_dtype=False)
    est = maximum_likelihood(long)
    np.testing.assert_allclose(est.coef_, coefficients_by_hand)


def test_scenarios_have_no_choices():
    wide = make_wide()
    long = wide_to_long(wide, SOURCES, choice="chosen")
    est = MixedLogit(fixed=["time", "toll"], random_state=0).fit(long)
    scenarios = wide_to_long(wide.drop(columns="chosen"), SOURCES, choice=None)
    pd.testing.assert_frame_equal(scenarios, long.drop(columns="choice"))
    pd.testing.assert_series_equal(est.predict_proba(scenarios), est.predict_proba(long))
    with pytest.raises(ChoiceDataError, match=r"no column 'choice' \(choice\)"):
        est.score(scenarios)


def test_a_source_is_a_column_before_it_is_a_number():
    wide = make_wide().rename(columns={"tb": 0, "tc": 1})
    long = wide_to_long(wide, {"time": {"bus": 0, "car": 1}, "toll": {"bus": 0.0, "car": "toll"}}, choice="chosen")
    expected = by_hand(make_wide())
    assert long["time"].tolist() == expected["time"].tolist()
    # A float, or a flag, is not the name 0 or 1.
    assert long["toll"].tolist() == expected["toll"].tolist()
    flags = wide_to_long(wide, {"is_car": {"bus": False, "car": True}}, choice="chosen")
    assert flags["is_car"].tolist() == [False, True] * len(wide)
    alone = wide_to_long(make_wide(), {"time": {"bus": 0, "car": np.int64(1)}}, choice="chosen")
    assert alone["time"].tolist() == [0, 1] * len(wide)


RESERVED = ["situation", "alternative", "choice", "available"]


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("role", ["decision_maker", "attribute", "keep"])
def test_names_that_collide_are_refused(name, role):
    """By name, before any column is overwritten."""
    wide = make_wide().assign(**{name: 5})
    attributes, options = dict(SOURCES), {"choice": "chosen", "availability": {"car": "open"}}
    if role == "decision_maker":
        options["decision_maker"] = name
    elif role == "attribute":
        attributes[name] = {"bus": "tb", "car": "tc"}
    else:
        options["keep"] = [name]
    with pytest.raises(ChoiceDataError, match=f"2 columns called '{name}'.*Rename"):
        wide_to_long(wide, attributes, **options)


@pytest.mark.parametrize(
    ("attributes", "options", "name"),
    [
        ({"id": {"bus": "tb", "car": "tc"}}, {}, "id"),
        (SOURCES, {"keep": ["toll"]}, "toll"),
        (SOURCES, {"keep": ["time"], "decision_maker": "time"}, "time"),
    ],
)
def test_names_that_collide_with_each_other_are_refused(attributes, options, name):
    wide = make_wide().assign(time=1)
    with pytest.raises(ChoiceDataError, match=f"columns called '{name}'"):
        wide_to_long(wide, attributes, choice="chosen", **options)


def test_names_that_do_no_harm():
    wide = make_wide().assign(situation=lambda f: f.groupby("id").cumcount(), available=1)
    long = wide_to_long(
        wide, SOURCES, choice="chosen", situation="situation", keep=["id", "situation", "available", "age"]
    )
    expected = by_hand(wide)
    assert list(long) == ["id", "situation", "alternative", "choice", "time", "toll", "available", "age"]
    assert long["situation"].tolist() == expected["situation"].tolist()
    named = wide_to_long(wide, {"choice": SOURCES["time"]}, choice=None)
    assert named["choice"].tolist() == expected["time"].tolist()


def test_categories_stay_categories():
    """So that a fit refuses them, as it would have before."""
    wide = make_wide().assign(tb=lambda f: pd.Categorical(f["tb"]), age=lambda f: pd.Categorical(f["age"]))
    for given in (wide, pa.Table.from_pandas(wide)):
        long = wide_to_long(given, SOURCES, choice="chosen", keep=["age"])
        assert isinstance(long["time"].dtype, pd.CategoricalDtype)
        assert isinstance(long["age"].dtype, pd.CategoricalDtype)
        assert long["time"].astype(int).tolist() == by_hand(make_wide())["time"].tolist()
        with pytest.raises(ChoiceDataError, match=r"'time' .*a category.*dummies"):
            MixedLogit(fixed=["time"]).fit(long)


LABELS = {
    "numbers": ([1, 2], lambda c: c.map({"bus": 1, "car": 2})),
    "numbers as floats": ([1, 2], lambda c: c.map({"bus": 1.0, "car": 2.0})),
    "pairs": ([("b", 1), ("c", 2)], lambda c: pd.Series([("b", 1) if v == "bus" else ("c", 2) for v in c])),
    "category": (["bus", "car"], pd.Categorical),
    "text and number": (["bus", 2], lambda c: c.replace("car", 2).astype(object)),
}


@pytest.mark.parametrize("kind", LABELS)
def test_alternatives_of_every_type(kind):
    labels, change = LABELS[kind]
    wide = make_wide()
    long = wide_to_long(
        wide.assign(chosen=change(wide["chosen"].astype(object))),
        {"time": dict(zip(labels, ["tb", "tc"], strict=True))},
        choice="chosen",
    )
    assert long["choice"].tolist() == by_hand(wide)["choice"].tolist()
    assert long["alternative"].tolist() == labels * len(wide)


def spoiled(**columns):
    return make_wide().assign(**columns)


BAD = {
    "missing choice": (spoiled(chosen=["bus", None, "car"] * 10), {}, r"'chosen' has 10 missing values \(rows 1; 4;"),
    "all choices missing": (spoiled(chosen=None), {}, "'chosen' has 30 missing values"),
    "choice of another type": (
        spoiled(chosen=1),
        {"attributes": {"t": {"1": "tb", "2": "tc"}}},
        r"30 of 30 rows of 'chosen'.*Did you mean '1' \(str\), not 1 \(int\)",
    ),
    "spelling": (spoiled(chosen="Bus"), {}, "Did you mean 'bus'"),
    "no people": (make_wide(), {"decision_maker": None}, "no column None"),
    "missing people": (spoiled(id=[None, *range(29)]), {}, r"'id' has 1 missing values \(rows 0\)"),
    "rows twice": (spoiled(s=0), {"situation": "s"}, r"20 of 30 rows repeat a pair \('id', 's'\)"),
    "missing situation": (spoiled(s=[None, *range(29)]), {"situation": "s"}, "'s' has 1 missing"),
    "no rows": (make_wide().iloc[:0], {}, "no rows"),
    "index": (make_wide().set_index("id"), {}, r"no column 'id'. It is a level of the index"),
    "text source": (
        make_wide(),
        {"attributes": {"t": {"bus": "tb", "car": "tcc"}}},
        "no column 'tcc'.*Did you mean 'tc'",
    ),
    "no source": (make_wide(), {"attributes": {"t": {"bus": "tb", "car": None}}}, "no column None, nor is it a number"),
    "list source": (make_wide(), {"attributes": {"t": {"bus": "tb", "car": [1]}}}, "nor is it a number"),
    "array source": (make_wide(), {"attributes": {"t": {"bus": "tb", "car": np.ones(30)}}}, "nor is it a number"),
    "NA source": (make_wide(), {"attributes": {"t": {"bus": "tb", "car": pd.NA}}}, "nor is it a number"),
    "list of attributes": (make_wide(), {"attributes": ["tb"]}, "must be a mapping"),
    "attribute without alternatives": (make_wide(), {"attributes": {"t": "tb"}}, "must be a mapping"),
    "keep text": (make_wide(), {"keep": "age"}, r"write \['age'\]"),
    "keep unknown": (make_wide(), {"keep": ["agee"]}, "no column 'agee'.*Did you mean 'age'"),
    "missing availability": (spoiled(open=np.nan), {"availability": {"car": "open"}}, "'open' has .* missing values"),
    "several levels": (
        make_wide().set_axis(pd.MultiIndex.from_product([["a"], make_wide().columns]), axis=1),
        {},
        "2 levels.*single names",
    ),
    "twice": (pd.concat([make_wide(), make_wide()[["tb"]]], axis=1), {}, r"more than one column called \['tb'\]"),
    "arrow twice": (
        pa.Table.from_arrays([pa.array([1])] * 2, names=["id", "id"]),
        {},
        r"more than one column called \['id'\]",
    ),
    "lazy": (pl.DataFrame({"id": [1]}).lazy(), {}, r"LazyFrame: call its collect\(\)"),
    "series": (pd.Series([1]), {}, "got Series"),
    "dict": ({"id": [1]}, {}, "got dict"),
    "array": (np.ones((3, 3)), {}, "got ndarray"),
    "nothing": (None, {}, "got NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_wide_frames_are_explained(case):
    frame, options, words = BAD[case]
    attributes = options.get("attributes", SOURCES)
    rest = {name: value for name, value in options.items() if name != "attributes"}
    with pytest.raises(ChoiceDataError, match=words):
        wide_to_long(frame, attributes, choice="chosen", **rest)
