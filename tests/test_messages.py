"""What is said of mistakes that tired people make, and errors that are caught by the names others give them."""

import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sklearn.exceptions

import mxlogit
from mxlogit import (
    MSLE,
    VI,
    ChoiceDataError,
    MissingExtraError,
    MixedLogit,
    SpecificationError,
    pack_choices,
)
from mxlogit.errors import suggest
from mxlogit.simulate import simulate_choices


@pytest.fixture(scope="module")
def frame():
    return simulate_choices(20, 3, 3, fixed={"x": 1.0, "z": 0.5}, random_state=6)[0]


@pytest.fixture(scope="module")
def est(frame):
    return MixedLogit(fixed=["x", "z"], random_state=0).fit(frame)


FRAMES = {
    "keys in the index": (
        lambda f: f.set_index("id"),
        r"no column 'id' \(decision_maker\).*level of the index.*reset_index",
    ),
    "all keys in the index": (
        lambda f: f.set_index(["id", "situation", "alternative"]),
        "3 problems(.|\n)*'situation'.*reset_index",
    ),
    "attribute in the index": (lambda f: f.set_index("x"), "no column 'x'; .*level of the index"),
    "other name": (lambda f: f.rename(columns={"id": "ID"}), r"no column 'id' \(decision_maker\)"),
    "columns by number": (lambda f: f.set_axis(range(f.shape[1]), axis=1), "no column 'id'"),
    "columns of several levels": (
        lambda f: f.set_axis(pd.MultiIndex.from_product([["a"], f.columns]), axis=1),
        "2 levels.*single names",
    ),
    "column twice": (lambda f: pd.concat([f, f[["x"]]], axis=1), r"more than one column called \['x'\]"),
    "column twice in arrow": (
        lambda f: pa.Table.from_arrays([pa.array(f["x"])] * 2, names=["x", "x"]),
        r"more than one column called \['x'\]",
    ),
    "no rows": (lambda f: f.iloc[:0], "no rows"),
    "no rows of polars": (lambda f: pl.from_pandas(f.drop(columns="alternative")).clear(), "no rows"),
    "no columns": (lambda f: f[[]], "no column 'id'"),
    "lazy": (lambda f: pl.LazyFrame({"id": [1]}), r"got LazyFrame: call its collect\(\)"),
    "series": (lambda f: f["x"], "got Series"),
    "dict": (lambda f: f.to_dict("list"), "got dict"),
    "list": (lambda f: [f], "got list"),
    "array": (lambda f: f[["x", "z"]].to_numpy(), "got ndarray"),
    "groups": (lambda f: f.groupby("id"), "got DataFrameGroupBy"),
    "path": (lambda f: "choices.csv", "got str"),
    "nothing": (lambda f: None, "got NoneType"),
    "class": (lambda f: pd.DataFrame, "got type"),
    "rows twice": (lambda f: pd.concat([f, f]), "180 rows repeat an alternative"),
    "everything missing": (lambda f: f.assign(x=np.nan), "'x' has 180 missing and 0 infinite"),
    "everything missing, no type": (lambda f: f.assign(x=None), "'x' has 180 missing and 0 infinite"),
    "everything infinite": (lambda f: f.assign(x=-np.inf), "'x' has 0 missing and 180 infinite"),
    "choices missing": (lambda f: f.assign(choice=None), "'choice' has 180 missing values"),
    "one alternative each": (lambda f: f[f["choice"]], "does not vary across alternatives"),
    "nobody chooses": (lambda f: f.assign(choice=0), "60 of 60 choice situations have no chosen alternative"),
    "everything chosen": (lambda f: f.assign(choice=1), "60 of 60 choice situations have more than one"),
    "choice of the alternative": (lambda f: f.assign(choice=f["alternative"]), "names the chosen alternative, write"),
    "choice in per cent": (lambda f: f.assign(choice=f["choice"] * 100), "must hold 0/1 or False/True"),
    "choice as dates": (lambda f: f.assign(choice=pd.Timestamp(0)), "must hold 0/1 or False/True"),
    "braces in a name": (lambda f: f.rename(columns={"id": "{places}"}), "no column 'id'"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_frames_that_are_none_are_explained(frame, case):
    spoil, words = FRAMES[case]
    if case == "no rows of polars":
        frame = frame.assign(alternative=0)
    with pytest.raises((ChoiceDataError, SpecificationError), match=words):
        MixedLogit(fixed=["x", "z"]).fit(spoil(frame))


def test_names_with_braces_are_quoted(frame):
    braces = frame.rename(columns={"x": "{x}", "id": "{who}"}).assign(w=-1.0)
    with pytest.raises(ChoiceDataError, match="180 weights are not positive"):
        MixedLogit(fixed=["{x}"], decision_maker="{who}", weights="w").fit(braces)
    with pytest.raises(ChoiceDataError, match=r"groups=frame\['\{who\}'\]"):
        MixedLogit(fixed=["{x}"], decision_maker="{who}").fit(braces.assign(choice=0))


@pytest.mark.parametrize("values", [np.array(1), 1, "choice", [[1, 0], [0, 1]], np.ones((180, 2)), [1, 0]])
def test_vectors_that_are_none_are_explained(frame, values):
    for argument in ("y", "sample_weight"):
        with pytest.raises(
            ChoiceDataError, match=f"{argument} (must hold one value per row|has 2 values for 180 rows)"
        ):
            MixedLogit(fixed=["x"]).fit(frame, **{argument: values})


def test_situations_of_a_single_alternative_say_nothing(frame, est):
    """Added to others they change no estimate; alone they are refused (above)."""
    single = frame[frame["choice"]].assign(situation=lambda f: f["situation"] + 100)
    more = MixedLogit(fixed=["x", "z"], random_state=0).fit(pd.concat([frame, single]))
    right = est.summary()
    assert ((more.coef_ - right["estimate"]).abs() < 0.05 * right["std_error"]).all()
    assert more.n_situations_ == 120


def test_a_missing_name_is_caught_under_every_name():
    for expected in (
        mxlogit.NotFittedError,
        sklearn.exceptions.NotFittedError,
        ValueError,
        AttributeError,
        mxlogit.MxlogitError,
    ):
        with pytest.raises(expected, match="call fit first"):
            MixedLogit(fixed=["x"]).summary()
    with pytest.raises(sklearn.exceptions.NotFittedError):
        mxlogit.wald_test(MixedLogit(fixed=["x"]), ["x"])


def test_tastes_of_nobody(est):
    """A table without rows, and without a word of warning (warnings are errors here)."""
    table = est.taste_distribution()
    assert table.shape == (0, 5)
    assert list(table.columns) == ["distribution", "mean", "mean_error", "sd", "sd_error"]


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("numpyro", {"method": mxlogit.MCMC(sampler="numpyro")}, "nuts"),
        ("zuko", {"method": VI(flow="autoregressive")}, "flows"),
    ],
)
def test_missing_extras_are_named(frame, monkeypatch, module, options, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'mxlogit\[{extra}\]'"):
        MixedLogit(random=["x"], random_state=0, **options).fit(frame)
    assert issubclass(MissingExtraError, ImportError)


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("pirce", ["price", "time"], " Did you mean 'price'?"),
        ("2", [1, 2, 3], " Did you mean 2 (int), not '2' (str)?"),
        (2, ["1", "2"], " Did you mean '2' (str), not 2 (int)?"),
        (2.0, [1, 2], " Did you mean 2?"),
        ("zzz", ["price"], ""),
        ("x", [], ""),
        (None, ["None"], " Did you mean 'None' (str), not None (NoneType)?"),
    ],
)
def test_a_spelling_is_suggested_with_its_type(name, known, words):
    assert suggest(name, known) == words


def test_a_fixed_column_that_begins_like_a_deviation_is_no_boundary(frame):
    """Only standard deviations of random coefficients lie on a boundary when they are zero."""
    est = MixedLogit(fixed=["sd.z", "x"], method=MSLE(), random_state=0).fit(frame.rename(columns={"z": "sd.z"}))
    assert "boundary" not in mxlogit.wald_test(est, ["sd.z"]).sentence


def test_names_of_packs_are_names(frame, tmp_path):
    with pytest.raises(SpecificationError, match=r"write \['x'\]"):
        pack_choices(frame, tmp_path / "pack", names="x")
    with pytest.raises(ChoiceDataError, match=r"more than one column called \['x'\]"):
        pack_choices(pd.concat([frame, frame[["x"]]], axis=1), tmp_path / "pack", names=["x"])
    packed = pack_choices(frame, tmp_path / "pack", names=pd.Index(["x", "z"]))
    assert packed.names == ("x", "z")
