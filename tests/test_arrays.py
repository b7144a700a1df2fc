"""Arrays of any layout and type: read as what they say, shared where they can be, refused where they say nothing."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch

from mxlogit import ChoiceData, ChoiceDataError, MixedLogit
from mxlogit.choices.moments import AttributeMoments

N, T, J, K = 4, 3, 2, 2


def arrays(seed=0):
    """Whole numbers, so that every type holds them; one alternative is unavailable, one situation not observed."""
    rng = np.random.default_rng(seed)
    attributes = rng.integers(0, 9, (N, T, J, K))
    chosen = rng.integers(0, J, (N, T))
    chosen[0, 0] = 0
    available = np.ones((N, T, J), dtype=int)
    available[0, 0, 1] = 0
    observed = np.ones((N, T), dtype=int)
    observed[2, 2] = 0
    weights = np.array([1, 2, 1, 3])
    return {
        "attributes": attributes,
        "chosen": chosen,
        "available": available,
        "observed": observed,
        "weights": weights,
    }


def build(given):
    rest = dict(given)
    return ChoiceData.from_arrays(rest.pop("attributes"), rest.pop("chosen"), **{"names": ["x", "z"], **rest})


FIELDS = ("attributes", "available", "observed", "chosen", "weights")


def assert_same(one, two):
    for field in FIELDS:
        torch.testing.assert_close(getattr(one, field).double(), getattr(two, field).double(), atol=0, rtol=0)


def reversed_(array):
    """The same values behind negative strides."""
    return np.ascontiguousarray(array[::-1])[::-1]


def read_only(array):
    kept = array.copy()
    kept.flags.writeable = False
    return kept


FORMS = {
    "reversed": reversed_,
    "reversed within": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "Fortran order": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "read-only": read_only,
    "broadcast": lambda a: np.broadcast_to(a[None], (1, *a.shape))[0],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "objects": lambda a: a.astype(object),
    "decimals": lambda a: np.array([Decimal(int(v)) for v in a.ravel()], dtype=object).reshape(a.shape),
    "lists": lambda a: a.tolist(),
    "masked without holes": np.ma.array,
    "tensor": torch.from_numpy,
    "tensor with a gradient": lambda a: torch.from_numpy(a).double().requires_grad_(),
    **{
        f"{kind}": (lambda a, k=kind: a.astype(k))
        for kind in (
            *("int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64", ">i2", ">u4"),
            *("float16", "float32", "float64", ">f4", ">f8", "longdouble"),
        )
    },
    **{
        f"torch {kind}": (lambda a, k=kind: torch.from_numpy(a).to(k))
        for kind in (torch.uint8, torch.int8, torch.int32, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_every_layout_and_type(form):
    given = arrays()
    assert_same(build({name: FORMS[form](array) for name, array in given.items()}), build(given))


def plain(array):
    return array.detach().double().numpy().copy() if torch.is_tensor(array) else np.array(array)


@pytest.mark.parametrize("form", FORMS)
def test_values_that_are_given_are_not_changed(form):
    given = {name: FORMS[form](array) for name, array in arrays().items()}
    before = {name: plain(array) for name, array in given.items()}
    build(given)
    for name, array in given.items():
        np.testing.assert_array_equal(plain(array), before[name])


def test_frames_and_series_as_arrays():
    given = arrays()
    given["chosen"] = pd.DataFrame(given["chosen"])
    given["observed"] = pd.DataFrame(given["observed"]).astype(bool)
    given["weights"] = pd.Series(given["weights"])
    assert_same(build(given), build(arrays()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attributes_share_memory(dtype):
    given = arrays()
    whole = {name: given[name] for name in ("attributes", "chosen")}
    for array in (whole["attributes"].astype(dtype), torch.from_numpy(whole["attributes"].astype(dtype))):
        data = ChoiceData.from_arrays(array, np.zeros((N, T), int), names=["x", "z"])
        assert data.attributes.data_ptr() == torch.as_tensor(array).data_ptr()
        assert data.attributes.dtype == getattr(torch, dtype)


def test_large_whole_numbers_keep_their_differences():
    """In single precision 2**40 and 2**40 + 1 are one number."""
    attributes = arrays()["attributes"] + 2**40
    data = ChoiceData.from_arrays(attributes, arrays()["chosen"], names=["x", "z"])
    np.testing.assert_array_equal(data.attributes.numpy(), attributes)


def test_what_is_not_observed_may_be_missing():
    given = arrays()
    hidden = {name: array.astype(float) for name, array in given.items()}
    hidden["chosen"][2, 2] = np.nan
    hidden["attributes"][2, 2] = np.nan
    hidden["attributes"][0, 0, 1] = np.inf
    assert_same(build(hidden), build(given))


def test_no_attributes_at_all():
    """Constants will be the only ones."""
    data = ChoiceData.from_arrays(np.zeros((N, T, J, 0)), arrays()["chosen"], names=[], alternatives=["a", "b"])
    est = MixedLogit(constants=True, method="msle").fit(data)
    share = arrays()["chosen"].mean()
    assert est.coef_["asc.b"] == pytest.approx(np.log(share / (1 - share)), abs=1e-5)
    assert AttributeMoments.of(data).gram.shape == (0, 0)


LABELS = {
    "mixed types": [1, "b", 2.5, (3, "d")],
    "text": list("abcd"),
    "dates": pd.date_range("2020-01-01", periods=N),
    "dates of a time zone": pd.date_range("2020-01-01", periods=N, tz="UTC"),
    "index": pd.Index([5, 6, 7, 8]),
    "big": [2**60, 2**60 + 1, 2**60 + 2, 2**60 + 3],
    "range": range(N),
    "generator of a dict": dict.fromkeys("wxyz"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_stay_what_they_are(kind):
    data = build({**arrays(), "decision_makers": LABELS[kind]})
    assert list(map(str, data.decision_makers)) == list(
        map(str, np.asarray(pd.Index(LABELS[kind], tupleize_cols=False)))
    )
    clusters = build({**arrays(), "clusters": LABELS[kind]}).clusters
    assert sorted(clusters.tolist()) == list(range(N))


def put(name, where, value):
    def change(given):
        given[name] = given[name].astype(object)
        given[name][where] = value

    return change


def give(**more):
    return lambda given: given.update(more)


HOLE = np.ma.masked_equal(np.arange(N * T * J * K, dtype=float).reshape(N, T, J, K), 3.0)
BAD = {
    "text attribute": (put("attributes", (0, 0, 0, 0), "1"), "attributes holds text.*1 of its 48 values.*first '1'"),
    "date attribute": (
        put("attributes", (0, 0, 0, 0), pd.Timestamp(0)),
        "attributes holds text or dates.*seconds or days",
    ),
    "dates": (
        lambda a: a.update(attributes=a["attributes"].astype("M8[s]")),
        "attributes holds text or dates.*datetime64",
    ),
    "strings": (lambda a: a.update(attributes=a["attributes"].astype(str)), "attributes holds text"),
    "complex": (lambda a: a.update(attributes=a["attributes"] + 1j), "attributes holds .*complex"),
    "complex tensor": (lambda a: a.update(attributes=torch.from_numpy(a["attributes"] + 1j)), "dense tensor of real"),
    "sparse tensor": (lambda a: a.update(attributes=torch.from_numpy(a["attributes"]).to_sparse()), "dense tensor"),
    "masked": (give(attributes=HOLE), "attributes is a masked array"),
    "ragged": (give(attributes=[[[[1.0]], [[2.0, 3.0]]]]), "attributes is ragged"),
    "scalar": (give(attributes=1.0), r"shape \(n, t, j, k\).*got \(\)"),
    "0-d array": (give(attributes=np.array(1.0)), r"shape \(n, t, j, k\).*got \(\)"),
    "nothing": (give(attributes=None), "attributes"),
    "no people": (give(attributes=np.zeros((0, T, J, K))), "no empty axis"),
    "fractions chosen": (put("chosen", (1, 1), 0.5), "chosen must hold whole numbers; 1 are not, first 0.5"),
    "missing choice": (
        put("chosen", (1, 1), None),
        r"1 chosen positions are missing or outside 0 to 1 \(person 1, situation 1\)",
    ),
    "nan choice": (put("chosen", (1, 1), np.nan), "1 chosen positions are missing or outside 0 to 1"),
    "infinite choice": (put("chosen", (1, 1), np.inf), "1 chosen positions are missing or outside 0 to 1"),
    "text choice": (give(chosen=[["a"] * T] * N), "chosen holds text"),
    "one-hot choice": (give(chosen=np.zeros((N, T, J))), r"chosen must have shape \(4, 3\).*chosen.argmax\(-1\)"),
    "0-d choice": (give(chosen=0), r"chosen must have shape \(4, 3\); got \(\)"),
    "available 2": (put("available", (0, 0, 0), 2), "available must hold 0/1 or False/True; 1 of 24 .*first 2"),
    "available missing": (put("available", (0, 0, 0), np.nan), "available must hold 0/1.*first nan"),
    "available text": (put("available", (0, 0, 0), "yes"), "available holds text"),
    "observed -1": (put("observed", (0, 0), -1), "observed must hold 0/1"),
    "observed count": (give(observed=np.array([3, 3, 2, 3])), r"observed must have shape \(4, 3\)"),
    "weights text": (give(weights=["1"] * N), "weights holds text"),
    "weights missing": (give(weights=[1, None, 1, 1]), r"1 weights are not positive and finite \(person 1\)"),
    "weights zero": (give(weights=[1, 0, 1, 1]), "1 weights are not positive"),
    "weights 0-d": (give(weights=2.0), r"weights must have shape \(4,\)"),
    "weights of rows": (give(weights=np.ones((N, T))), r"weights must have shape \(4,\)"),
    "names text": (give(names="xz"), r"names must be a list.*\['xz'\]"),
    "names twice": (give(names=["x", "x"]), "2 different names"),
    "too many names": (give(names=["x", "y", "z"]), "2 different names"),
    "people twice": (give(decision_makers=["a", "b", "a", "c"]), r"decision_makers must be unique; 1 repeat.*\(a\)"),
    "mixed people twice": (give(decision_makers=[1, "b", 1, "c"]), "decision_makers must be unique; 1 repeat"),
    "missing people": (give(decision_makers=[1, None, 2, np.nan]), r"decision_makers has 2 missing labels \(at 1; 3\)"),
    "too few people": (give(decision_makers=[1, 2]), "decision_makers must have length 4; got 2"),
    "people in a table": (
        give(decision_makers=[[1, 2], [3, 4], [5, 6], [7, 8]]),
        "decision_makers must be a vector of labels",
    ),
    "alternatives twice": (give(alternatives=["a", "a"]), "alternatives must be unique"),
    "too many alternatives": (give(alternatives=["a", "b", "c"]), "alternatives must have length 2"),
    "too few clusters": (give(clusters=[1, 2]), "clusters must have length 4"),
    "missing clusters": (give(clusters=["a", None, "b", "b"]), "clusters has 1 missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_explained(case):
    spoil, words = BAD[case]
    given = arrays()
    spoil(given)
    with pytest.raises(ChoiceDataError, match=words):
        build(given)
