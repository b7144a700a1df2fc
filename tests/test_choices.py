"""Reading frames: shapes, every kind of bad input, other frame libraries, reshaping."""

import numpy as np
import pandas as pd
import polars
import pyarrow
import pytest
import torch

from mxlogit import VI, ChoiceData, ChoiceDataError, MixedLogit, SpecificationError, wide_to_long
from mxlogit.choices import read_frame
from mxlogit.simulate import simulate_choices
from mxlogit.spec import Columns

COLUMNS = Columns("id", "situation", "alternative", "choice")


@pytest.fixture
def frame():
    made, _ = simulate_choices(
        6, (2, 4), 4, fixed={"x": 1.0}, random={"z": (0.5, 1.0)}, unavailable=0.3, random_state=1
    )
    return made


def read(frame, **options):
    return read_frame(frame, COLUMNS, ["x", "z"], **options)


def test_every_row_finds_its_place(frame):
    rows = read(frame)
    data = rows.data
    for i in range(len(frame)):
        person, situation, place = rows.person[i], rows.situation[i], int(rows.place[i])
        assert data.choices.rows[place].tolist() == frame.loc[i, ["x", "z"]].tolist()
        first, stop = data.first_rows[situation : situation + 2].tolist()
        assert first <= place < stop
        assert data.first_situations[person] <= situation < data.first_situations[person + 1]
        assert data.alternatives[data.choices.positions[place]] == frame.loc[i, "alternative"]
        assert (int(data.choices.chosen_ranks[situation]) == place - first) == bool(frame.loc[i, "choice"])
    assert len(data.choices.rows) == len(frame)
    assert data.n_situations == len(frame[["id", "situation"]].drop_duplicates())
    assert bool(data.available.any(-1).all())


def test_row_order_does_not_matter(frame):
    shuffled = frame.sample(frac=1.0, random_state=3)
    one, two = read(frame).data, read(shuffled).data
    for name in ("attributes", "available", "observed", "chosen"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=0, rtol=0)


def test_situation_ids_may_restart(frame):
    assert frame.groupby("id")["situation"].min().eq(1).all()
    unique = frame.assign(situation=frame["id"] * 100 + frame["situation"])
    torch.testing.assert_close(read(frame).data.attributes, read(unique).data.attributes, atol=0, rtol=0)


def test_the_frame_is_not_changed(frame):
    before = frame.copy(deep=True)
    read(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_polars_and_pyarrow_give_the_same(frame):
    expected = read(frame).data
    for other in (polars.DataFrame(frame.to_dict("list")), pyarrow.Table.from_pandas(frame, preserve_index=False)):
        got = read(other).data
        torch.testing.assert_close(got.attributes, expected.attributes, atol=0, rtol=0)
        assert (got.chosen == expected.chosen).all()


def test_closed_by_column_equals_closed_by_missing_row(frame):
    full, _ = simulate_choices(6, 3, 4, fixed={"x": 1.0}, random={"z": (0.5, 1.0)}, random_state=1)
    unavailable = (full["alternative"] == "a4") & ~full["choice"]
    marked = full.assign(open=(~unavailable).astype(int))
    marked.loc[unavailable, "x"] = np.nan
    columns = Columns("id", "situation", "alternative", "choice", availability="open")
    by_column = read_frame(marked, columns, ["x", "z"]).data
    by_row = read(full[~unavailable]).data
    for name in ("attributes", "available", "chosen"):
        torch.testing.assert_close(getattr(by_column, name), getattr(by_row, name), atol=0, rtol=0)


def change(frame, row, column, value):
    changed = frame.copy()
    changed[column] = changed[column].astype(object)
    changed.loc[row, column] = value
    return changed


def first_chosen(frame):
    return frame.index[frame["choice"]][0]


BAD = {
    "missing column": (lambda f: f.drop(columns="x"), "no column 'x'"),
    "suggestion": (lambda f: f.rename(columns={"situation": "situations"}), "Did you mean 'situations'"),
    "empty": (lambda f: f.iloc[:0], "no rows"),
    "missing value": (
        lambda f: change(f, 4, "x", None).assign(x=lambda d: d["x"].astype(float)),
        "1 missing and 0 infinite",
    ),
    "infinite value": (
        lambda f: change(f, 4, "x", np.inf).assign(x=lambda d: d["x"].astype(float)),
        "0 missing and 1 infinite",
    ),
    "overflow": (lambda f: f.assign(x=f["x"] * 1e20), "values up to .*rescale"),
    "dates": (lambda f: f.assign(x=pd.Timestamp("2020-01-01")), "column 'x' holds text or dates"),
    "complex": (lambda f: f.assign(x=f["x"] + 1j), "column 'x' holds text or dates"),
    "column twice": (lambda f: pd.concat([f, f[["x"]]], axis=1), "more than one column called"),
    "text": (lambda f: f.assign(x="cheap"), "column 'x' holds text or dates"),
    "no choice": (
        lambda f: f.assign(choice=f["choice"] & (f.index != first_chosen(f))),
        "1 of .* no chosen alternative",
    ),
    "two choices": (lambda f: f.assign(choice=f["choice"] | (f["alternative"] == "a1")), "more than one chosen"),
    "label as choice": (lambda f: f.assign(choice="a1"), "must hold 0/1"),
    "missing key": (lambda f: change(f, 3, "id", None), "'id' has 1 missing"),
    "duplicate rows": (lambda f: pd.concat([f, f.iloc[[0]]], ignore_index=True), "repeat an alternative"),
    "never varies": (lambda f: f.assign(x=f["id"].astype(float)), "'x' is not identified"),
    "collinear": (lambda f: f.assign(x=2.0 * f["z"]), "linear combination of the others"),
    "not a frame": (lambda f: f.to_numpy(), "expected a long pandas"),
    "bad weights": (lambda f: f.assign(w=-1.0), "weights are not positive"),
    "weights vary": (lambda f: f.assign(w=1.0 + np.arange(len(f))), "weights differ within"),
    "chosen but unavailable": (lambda f: f.assign(open=~f["choice"]), "marked unavailable"),
    "all unavailable": (lambda f: f.assign(open=0), "no available alternative"),
    "availability text": (lambda f: f.assign(open="yes"), "must hold 0/1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained(frame, case):
    spoil, words = BAD[case]
    spoiled = spoil(frame)
    options = {}
    if isinstance(spoiled, pd.DataFrame):
        options = {name: column for name, column in (("weights", "w"), ("availability", "open")) if column in spoiled}
    est = MixedLogit(fixed=["x"], random=["z"], random_state=0, **options)
    with pytest.raises((ChoiceDataError, SpecificationError), match=words) as caught:
        est.fit(spoiled)
    assert isinstance(caught.value, ValueError)
    assert not hasattr(est, "coef_")


def test_all_problems_are_reported_at_once(frame):
    spoiled = change(frame, 4, "z", None).assign(z=lambda d: d["z"].astype(float), choice=False, x="text")
    with pytest.raises(ChoiceDataError) as caught:
        read(spoiled)
    message = str(caught.value)
    assert message.startswith("3 problems")
    for words in ("column 'x' holds text or dates", "column 'z' has 1 missing", "no chosen alternative"):
        assert words in message


def test_the_next_fit_works_after_a_bad_one(frame):
    est = MixedLogit(fixed=["x", "z"], random_state=0, method=VI(correct=False))
    with pytest.raises(ChoiceDataError):
        est.fit(frame.assign(x="text"))
    assert est.fit(frame).n_decision_makers_ == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"random": {"x": "lognormel"}}, "Did you mean 'lognormal'"),
        ({"fixed": "x"}, "must be a list of column names"),
        ({"fixed": ["x"], "random": ["x"]}, "both in fixed and in random"),
        ({"fixed": ["x", "x"]}, "more than once"),
        ({}, "nothing to estimate"),
        ({"random": ["x", "z"], "correlated": [["x", "y"]]}, r"correlated names \['y'\]"),
        ({"random": ["x", "z"], "correlated": [["x"], ["x", "z"]]}, "two blocks"),
        ({"random": ["x", "z"], "correlated": ["x", "z"]}, "list of lists"),
        ({"fixed": ["x"], "base_alternative": "a1"}, "needs constants"),
        ({"fixed": ["x"], "constants": True, "base_alternative": "bus"}, "not among the alternatives"),
        ({"fixed": ["x", "asc.bus"], "constants": True}, "no such alternative-specific constant"),
        ({"fixed": ["x"], "method": "em"}, "method must be one of 'vi', 'svi', 'msle'"),
        ({"fixed": ["x"], "method": 3}, "settings object"),
        ({"fixed": ["x"], "method": VI}, "settings object"),
        ({"fixed": None}, "must be a list of column names"),
        ({"fixed": ["x"], "priors": "flat"}, "priors must be None or Priors"),
        ({"fixed": ["x"], "device": "gpu7"}, "device must be"),
        ({"fixed": ["x"], "dtype": "float16"}, "dtype must be one of"),
        ({"fixed": ["x"], "random_state": -1}, "random_state"),
    ],
)
def test_bad_requests_are_explained(frame, options, words):
    with pytest.raises((SpecificationError, ChoiceDataError), match=words):
        MixedLogit(**options).fit(frame)


def test_constants_are_dummies_without_the_base(frame):
    data = read(frame, constants=True, base_alternative="a2").data
    assert data.names == ("x", "z", "asc.a1", "asc.a3", "asc.a4")
    dummies = data.attributes[..., 2:]
    assert (dummies.sum((-1, -2)) <= 3).all()
    assert dummies[:, :, 1].abs().sum() == 0
    assert dummies[:, :, 0, 0].sum() == data.n_situations


def test_many_alternative_labels_are_packed(frame):
    labelled = frame.assign(alternative=np.arange(len(frame)))
    data = read(labelled).data
    assert data.alternatives is None
    assert data.n_alternatives == 4


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: a.update(chosen=a["chosen"] + 9), "outside 0 to 2"),
        (lambda a: a.update(chosen=a["chosen"][:, :1]), r"chosen must have shape \(4, 2\)"),
        (lambda a: a.update(names=["x"]), "names must be 2 different names"),
        (lambda a: a.update(weights=np.array([1.0, 1.0, 0.0, np.nan])), "2 weights are not positive"),
        (lambda a: a.update(decision_makers=[1, 1, 2, 3]), "unique"),
        (lambda a: a.update(attributes=a["attributes"] * np.nan), "missing or infinite"),
        (lambda a: a.update(attributes=a["attributes"][0]), "must have shape"),
        (lambda a: a.update(available=np.zeros((4, 2, 3), bool)), "not available"),
        (lambda a: a.update(observed=np.zeros((4, 2), bool)), "no observed choice situation"),
        (lambda a: a.update(available=np.ones((4, 2), bool)), "available must have shape"),
    ],
)
def test_bad_arrays_are_explained(spoil, words):
    rng = np.random.default_rng(0)
    arrays = {"attributes": rng.normal(size=(4, 2, 3, 2)), "chosen": rng.integers(0, 3, (4, 2)), "names": ["x", "z"]}
    spoil(arrays)
    attributes, chosen = arrays.pop("attributes"), arrays.pop("chosen")
    with pytest.raises(ChoiceDataError, match=words):
        ChoiceData.from_arrays(attributes, chosen, **arrays)


def test_arrays_are_not_copied_when_they_can_be_used():
    attributes = torch.randn(3, 2, 4, 2, generator=torch.Generator().manual_seed(0))
    data = ChoiceData.from_arrays(attributes, np.zeros((3, 2), int), names=["x", "z"])
    assert data.attributes.data_ptr() == attributes.data_ptr()


def test_wide_equals_long():
    wide = pd.DataFrame(
        {"id": [1, 1, 2], "chosen": ["bus", "car", "car"], "tb": [30, 20, 25], "tc": [25, 25, 10], "ok": [1, 1, 0]}
    )
    wide.loc[2, "chosen"] = "bus"
    long = wide_to_long(
        wide,
        {"time": {"bus": "tb", "car": "tc"}, "toll": {"bus": 0.0, "car": 2.5}},
        choice="chosen",
        availability={"car": "ok"},
    )
    assert long["time"].tolist() == [30, 25, 20, 25, 25, 10]
    assert long["choice"].tolist() == [True, False, False, True, True, False]
    assert long["situation"].tolist() == [0, 0, 1, 1, 0, 0]
    assert long["toll"].tolist() == [0, 2.5] * 3
    assert long["available"].tolist() == [True, True, True, True, True, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attributes": {"time": {"bus": "tb", "car": "nope"}}}, "no column 'nope'"),
        ({"attributes": {"time": {"bus": "tb", "car": "tb"}, "cost": {"bus": "tb"}}}, "names alternatives"),
        ({"attributes": {"time": {"bus": "tb", "tram": "tb"}}}, "name no alternative"),
        ({"attributes": {}}, "at least one attribute"),
        ({"attributes": {"t": {"bus": "tb", "car": 1}}, "availability": {"Bus": "tb"}}, "Did you mean 'bus'"),
        ({"attributes": {"t": {"bus": "tb", "car": 1}}, "availability": {"bus": "tb"}}, "must hold 0/1"),
    ],
)
def test_bad_wide_frames_are_explained(options, words):
    wide = pd.DataFrame({"id": [1, 2], "chosen": ["bus", "car"], "tb": [30, 20]})
    with pytest.raises(ChoiceDataError, match=words):
        wide_to_long(wide, choice="chosen", **options)


def test_given_vectors_of_any_usual_shape(frame):
    """A column of shape (n, 1) is flattened; anything else is explained."""
    est = MixedLogit(fixed=["x", "z"], random_state=0, method=VI(correct=False))
    column = est.fit(frame, frame[["choice"]]).coef_
    np.testing.assert_allclose(column, est.fit(frame).coef_)
    for weights in (2.0, np.ones((len(frame), 2))):
        with pytest.raises(ChoiceDataError, match="one value per row"):
            est.fit(frame, sample_weight=weights)


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_a_single_alternative_says_nothing(frame):
    est = MixedLogit(fixed=["x"], random=["z"], random_state=0, method=VI(draws=16, correct=False)).fit(frame)
    only = frame[frame["choice"]].assign(alternative="x")
    assert est.score(only) == pytest.approx(0.0, abs=1e-6)
