"""Labels: constants alone and with others, labels that recur, and names that two things would have."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.optimize import minimize

from mxlogit import MCMC, MSLE, VI, ChoiceData, ChoiceDataError, MixedLogit, SpecificationError, pack_choices
from mxlogit.choices import read_frame
from mxlogit.simulate import simulate_choices
from mxlogit.spec import Columns

COLUMNS = Columns("id", "situation", "alternative", "choice")
ENGINES = {
    "vi": VI(n_samples=400),
    "msle": MSLE(),
    "mcmc": MCMC(samples=200, warmup=60, chains=4),
}
# Posterior sd of a constant of 1,200 choices: .07; chains of this length have Monte Carlo errors of about .005.
FROM_MAXIMUM = {"vi": 2e-3, "msle": 1e-5, "mcmc": 2.5e-2}


@pytest.fixture(scope="module")
def frame():
    return simulate_choices(200, 6, 3, fixed={"x": 1.0}, random_state=0)[0]


@pytest.fixture(scope="module")
def log_shares(frame):
    """What constants alone are: log ratios of shares."""
    count = frame.loc[frame["choice"], "alternative"].value_counts()
    return np.log(count / count["a1"])


def fit(data, **options):
    return MixedLogit(**{"random_state": 0, "method": VI(n_samples=400), **options}).fit(data)


@pytest.mark.parametrize("engine", ENGINES)
def test_constants_alone_are_log_share_ratios(frame, log_shares, engine):
    est = fit(frame, constants=True, method=ENGINES[engine])
    assert list(est.coef_.index) == ["asc.a2", "asc.a3"]
    np.testing.assert_allclose(est.coef_, log_shares[["a2", "a3"]], atol=FROM_MAXIMUM[engine])
    np.testing.assert_allclose(est.coef_, [0.0848, 0.1211], atol=FROM_MAXIMUM[engine] + 5e-5)


def test_constants_alone_against_another_base(frame, log_shares):
    est = fit(frame, constants=True, base_alternative="a3", method="msle")
    np.testing.assert_allclose(est.coef_, log_shares[["a1", "a2"]] - log_shares["a3"], atol=1e-5)


def test_results_of_constants_alone(frame, log_shares):
    est = fit(frame, constants=True, method="msle")
    probability = est.predict_proba(frame.drop(columns="choice"))
    shares = np.exp(log_shares) / np.exp(log_shares).sum()
    np.testing.assert_allclose(probability, frame["alternative"].map(shares), atol=1e-5)
    np.testing.assert_allclose(est.shares(frame), shares[["a1", "a2", "a3"]], atol=1e-5)
    entropy = float((shares * np.log(shares)).sum())
    assert est.score(frame) == pytest.approx(entropy, abs=1e-6)
    assert est.log_likelihood_ == pytest.approx(1_200 * entropy, abs=1e-3)
    assert est.individual_coefficients().shape == (200, 0)
    assert list(est.taste_distribution().columns) == ["distribution", "mean", "mean_error", "sd", "sd_error"]


def test_constants_alone_from_every_form_of_data(frame, log_shares, tmp_path):
    data = read_frame(frame, COLUMNS, []).data
    assert data.attributes.shape[-1] == 0
    forms = {
        "data": data,
        "arrays": ChoiceData.from_arrays(
            np.zeros((200, 6, 3, 0)), data.chosen.numpy(), names=[], alternatives=["a1", "a2", "a3"]
        ),
        "pack of a frame": pack_choices(frame, tmp_path / "one"),
        "pack of data": pack_choices(data, tmp_path / "two"),
    }
    for name, form in forms.items():
        est = fit(form, constants=True, method="vi")
        np.testing.assert_allclose(est.coef_, log_shares[["a2", "a3"]], atol=FROM_MAXIMUM["vi"], err_msg=name)


def quadrature_maximum(frame, points=60):
    """Maximum of the likelihood of constants alone, that of a2 normal over people, by Gauss-Hermite quadrature."""
    count = frame[frame["choice"]].groupby(["id", "alternative"]).size().unstack(fill_value=0)
    count = count[["a1", "a2", "a3"]].to_numpy()
    node, weight = hermegauss(points)
    log_weight = np.log(weight / weight.sum())

    def loss(theta):
        utility = np.stack([np.zeros(points), theta[0] + np.exp(theta[2]) * node, np.full(points, theta[1])])
        log_prob = utility - np.log(np.exp(utility).sum(0))
        joint = count @ log_prob + log_weight
        top = joint.max(1, keepdims=True)
        return -(top[:, 0] + np.log(np.exp(joint - top).sum(1))).sum()

    found = minimize(loss, [0.0, 0.0, -0.5], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    return {"asc.a2": found.x[0], "asc.a3": found.x[1], "sd.asc.a2": float(np.exp(found.x[2]))}, -found.fun


@pytest.fixture(scope="module")
def varied():
    """People who differ in how they like a2 (sd 1.5): far from the boundary."""
    frame, truth = simulate_choices(150, 6, 3, random={"z": (0.3, 1.5)}, random_state=5)
    rng = np.random.default_rng(0)
    taste = truth.tastes["z"].loc[frame["id"]].to_numpy()
    utility = np.where(frame["alternative"] == "a2", taste, 0.0) + rng.gumbel(size=len(frame))
    best = pd.Series(utility).groupby([frame["id"], frame["situation"]]).transform("max")
    return frame.drop(columns="z").assign(choice=(best == utility).to_numpy())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_random_constant_alone_is_that_of_quadrature(varied, engine):
    right, log_likelihood = quadrature_maximum(varied)
    method = {"msle": MSLE(n_draws=2_000), "mcmc": MCMC(samples=200, warmup=100, chains=2)}.get(engine, ENGINES[engine])
    est = fit(varied, constants=True, random=["asc.a2"], method=method)
    assert list(est.coef_.index) == ["asc.a3", "asc.a2", "sd.asc.a2"]
    # Posterior means are not the maximum: within .4 of their sds; MSLE is, but for its draws.
    room = 0.02 * est.summary()["std_error"] + 5e-3 if engine == "msle" else 0.4 * est.summary()["std_error"]
    assert ((est.coef_ - pd.Series(right)[est.coef_.index]).abs() < room).all()
    assert est.log_likelihood_ == pytest.approx(log_likelihood, abs=0.5)
    one = varied[varied["id"] == 1].drop(columns="choice")
    assert est.predict_proba(one).groupby(one["situation"]).sum().to_numpy() == pytest.approx(np.ones(6))


# -- names that two things would have --------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    return simulate_choices(60, 5, 3, fixed={"x": 1.0}, random={"z": (0.5, 1.0)}, random_state=3)[0]


@pytest.fixture(scope="module")
def plain(two):
    """A fit under names that mean nothing else."""
    return fit(two, fixed=["x", "z"])


RESERVED = ["asc.a2", "asc.", "sd.x", "sd.z", "cor.x:z", "cor.z:x", "mean", "sd", "estimate", "index", "y", "{count}"]


@pytest.mark.parametrize("name", RESERVED)
def test_a_column_is_a_column_whatever_its_name(two, plain, name, tmp_path):
    """Where no other parameter has the label, a name is a name: in frames, in packs, in predictions."""
    renamed = two.rename(columns={"z": name})
    for data in (renamed, pack_choices(renamed, tmp_path / "pack", names=["x", name])):
        est = fit(data, fixed=["x", name])
        assert list(est.coef_.index) == ["x", name]
        np.testing.assert_allclose(est.coef_, plain.coef_, rtol=1e-4)
    assert est.predict_proba(renamed).to_numpy() == pytest.approx(plain.predict_proba(two).to_numpy(), abs=1e-4)


@pytest.mark.parametrize("name", ["{count}", "{places}", "{", "{0}", "%s", "\\0count", "a\nb"])
def test_a_sentence_quotes_a_name_as_it_is(two, name):
    renamed = two.rename(columns={"z": name})
    renamed.loc[[3, 7], name] = np.nan
    with pytest.raises(ChoiceDataError, match=re.escape(f"{name!r} has 2 missing")):
        fit(renamed, fixed=["x", name])


ROLES = {"decision_maker": "who", "situation": "when", "alternative": "which", "choice": "took"}
WORDS = [*ROLES, "id", "available", "availability", "weights", "cluster", "names", "probability", "share", "taste"]


@pytest.mark.parametrize("name", WORDS)
def test_an_attribute_may_have_the_name_of_a_role(two, plain, name):
    """Where another column has the role."""
    renamed = two.rename(
        columns={"id": "who", "situation": "when", "alternative": "which", "choice": "took", "z": name}
    )
    est = fit(renamed, fixed=["x", name], **ROLES)
    np.testing.assert_allclose(est.coef_, plain.coef_, rtol=1e-6)
    np.testing.assert_allclose(est.predict_proba(renamed), plain.predict_proba(two), rtol=1e-5)
    assert est.shares(renamed).to_numpy() == pytest.approx(plain.shares(two).to_numpy(), abs=1e-6)
    assert est.predict(renamed).tolist() == plain.predict(two).tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sd.x", {"fixed": ["sd.x"], "random": ["x"]}),
        ("sd.x", {"random": ["x", "sd.x"]}),
        ("cor.x:w", {"fixed": ["cor.x:w"], "random": ["x", "w"]}),
        ("sd.asc.a2", {"fixed": ["x", "sd.asc.a2"], "random": ["asc.a2"], "constants": True}),
    ],
)
@pytest.mark.parametrize("form", ["frame", "data", "pack"])
def test_a_label_of_two_parameters_is_refused_by_name(two, name, options, form, tmp_path):
    rng = np.random.default_rng(0)
    frame = two.rename(columns={"z": name}).assign(w=rng.normal(size=len(two)))
    names = ["x", "w", name]
    forms = {
        "frame": lambda: frame,
        "data": lambda: read_frame(frame, COLUMNS, names).data,
        "pack": lambda: pack_choices(frame, tmp_path / "pack", names=names),
    }
    with pytest.raises(SpecificationError, match=f"'{name}'.*label two parameters"):
        fit(forms[form](), **options)


def test_labels_that_split_two_ways_are_refused():
    """Columns a:b and c, and a and b:c, have one label of their correlations."""
    frame, _ = simulate_choices(30, 4, 3, random={n: (0.0, 1.0) for n in ("a:b", "c", "a", "b:c")}, random_state=0)
    with pytest.raises(SpecificationError, match=r"cor\.a:b:c"):
        fit(frame, random=["a:b", "c", "a", "b:c"], correlated=[["a:b", "c"], ["a", "b:c"]])


def test_a_column_with_the_label_of_a_constant_is_never_replaced(two, tmp_path):
    mine = two.rename(columns={"z": "asc.a2"})
    for fixed in (["x", "asc.a2"], ["x"]):
        with pytest.raises(ChoiceDataError, match=r"column 'asc.a2' differs from the constant.*'a2'.*Rename"):
            fit(mine, fixed=fixed, constants=True)
    data = read_frame(mine, COLUMNS, ["x", "asc.a2"]).data
    for kept in (data, pack_choices(data, tmp_path / "pack")):
        assert kept.names == ("x", "asc.a2")
        with pytest.raises(ChoiceDataError, match=r"already have attributes \['asc.a2'\]"):
            fit(kept, fixed=["x"], constants=True)
    # No constant has this label against this base, so it is an attribute.
    est = fit(mine, fixed=["x", "asc.a2"], constants=True, base_alternative="a2")
    right = fit(two, fixed=["x", "z"], constants=True, base_alternative="a2")
    np.testing.assert_allclose(est.coef_, right.coef_, rtol=1e-6)


def test_dummies_made_by_hand_may_stay_in_the_frame(two):
    """They say what the constants say."""
    dummies = {f"asc.{label}": (two["alternative"] == label).astype(float) for label in ("a2", "a3")}
    by_hand = fit(two.assign(**dummies), fixed=["x", "asc.a2", "asc.a3"])
    both = fit(two.assign(**dummies), fixed=["x"], constants=True)
    np.testing.assert_allclose(both.coef_, by_hand.coef_, rtol=1e-6)
    np.testing.assert_allclose(fit(two, fixed=["x"], constants=True).coef_, by_hand.coef_, rtol=1e-6)


def test_alternatives_whose_constants_would_have_one_label(two):
    mixed = two.assign(alternative=two["alternative"].map({"a1": 1, "a2": "1", "a3": 2}))
    with pytest.raises(ChoiceDataError, match=r"alternatives \[1, '1'\].*'asc.1'"):
        fit(mixed, fixed=["x"], constants=True)
    assert np.isfinite(fit(mixed, fixed=["x"]).coef_).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fixed": ["x", "asc.a9"], "constants": True}, r"no such alternative-specific constant: \['asc.a9'\]"),
        ({"fixed": ["x", "asc.a2"]}, "no column 'asc.a2'.*constants=True"),
        ({"fixed": ["xx"], "constants": True}, "no column 'xx'.*Did you mean 'x'"),
        ({"fixed": ["x"], "constants": "a2"}, "constants must be True or False"),
        ({"fixed": ["x", "choice"]}, "'choice' is the choice"),
        ({"fixed": ["x"], "decision_maker": 0}, "decision_maker must be the name of a column"),
        ({"fixed": ["x"], "choice": None}, "choice must be the name of a column"),
        ({"fixed": ["x"], "availability": "choice"}, "'choice' cannot be both choice and availability"),
        ({"fixed": ["x"], "alternative": "situation"}, "'situation' cannot be both alternative and situation"),
        ({"fixed": ["x"], "choice": "alternative"}, "'alternative' cannot be both alternative and choice"),
        ({"fixed": ["x"], "weights": "id"}, "'id' cannot be both weights and decision_maker"),
    ],
)
def test_names_that_are_wrong_are_explained(two, options, words):
    with pytest.raises((SpecificationError, ChoiceDataError), match=words):
        fit(two, **options)


def test_roles_that_may_share_a_column(two):
    """One situation a person: the decision maker is the situation; numbers of alternatives may be an attribute."""
    single = two.assign(case=two["id"] * 100 + two["situation"], place=two["alternative"].str[1:].astype(int))
    est = fit(single, fixed=["x", "place"], decision_maker="case", situation="case", alternative="place")
    right = fit(single, fixed=["x", "place"])
    np.testing.assert_allclose(est.coef_, right.coef_, atol=1e-5)


# -- labels that recur -----------------------------------------------------------------------------


def many_labels(n_labels, size, n_people, n_situations=4, seed=0):
    """Choice sets of ``size`` of many labelled alternatives, each with a constant of its own."""
    rng = np.random.default_rng(seed)
    count = n_people * n_situations
    label = np.concatenate([rng.choice(n_labels, size, replace=False) for _ in range(count)])
    frame = pd.DataFrame(
        {
            "id": np.repeat(np.arange(n_people), n_situations * size),
            "situation": np.tile(np.repeat(np.arange(n_situations), size), n_people),
            "alternative": label,
            "x": rng.normal(size=count * size),
        }
    )
    utility = frame["x"] + rng.normal(0.0, 0.5, n_labels)[label] + rng.gumbel(size=len(frame))
    best = utility.groupby([frame["id"], frame["situation"]]).transform("max")
    return frame.assign(choice=(best == utility).astype(int))


def maximum_by_scipy(frame, n_labels):
    """Coefficients of x and of dummies made by hand that maximise the multinomial likelihood."""
    size = int(frame.groupby(["id", "situation"]).size().iloc[0])
    x = frame["x"].to_numpy().reshape(-1, size)
    label = frame["alternative"].to_numpy().reshape(-1, size)
    chosen = frame["choice"].to_numpy().reshape(-1, size).astype(float)

    def loss(theta):
        utility = theta[0] * x + np.concatenate([[0.0], theta[1:]])[label]
        utility = utility - utility.max(1, keepdims=True)
        prob = np.exp(utility) / np.exp(utility).sum(1, keepdims=True)
        error = chosen - prob
        score = np.bincount(label.ravel(), error.ravel(), n_labels)
        return -(chosen * np.log(prob)).sum(), -np.concatenate([[(error * x).sum()], score[1:]])

    return minimize(loss, np.zeros(n_labels), jac=True, method="BFGS", options={"gtol": 1e-6}).x


@pytest.mark.parametrize(("n_labels", "size"), [(33, 10), (45, 6)])
def test_labels_that_recur_have_constants(n_labels, size, tmp_path):
    frame = many_labels(n_labels, size, 120)
    right = maximum_by_scipy(frame, n_labels)
    est = fit(frame, fixed=["x"], constants=True, method="msle")
    assert list(est.coef_.index) == ["x", *(f"asc.{label}" for label in range(1, n_labels))]
    np.testing.assert_allclose(est.coef_, right, atol=2e-4)
    packed = pack_choices(frame, tmp_path / "pack", names=["x"], dtype=torch.float64)
    np.testing.assert_allclose(fit(packed, fixed=["x"], constants=True, method="msle").coef_, right, atol=2e-4)


@pytest.mark.parametrize("labels", ["rows", "offers to one person"])
def test_labels_that_number_rows_have_no_constants(labels):
    frame = many_labels(40, 10, 100)
    number = (
        np.arange(len(frame)) if labels == "rows" else frame["id"] * 10 + frame.groupby(["id", "situation"]).cumcount()
    )
    numbered = frame.assign(alternative=number)
    with pytest.raises(ChoiceDataError, match="constants=True needs labelled alternatives that recur"):
        fit(numbered, fixed=["x"], constants=True)
    # Without constants labels have no effect.
    np.testing.assert_allclose(fit(numbered, fixed=["x"]).coef_, fit(frame, fixed=["x"]).coef_, rtol=1e-4)


def test_few_rows_of_few_labels_recur():
    """Two people, one situation each."""
    frame = pd.DataFrame(
        {
            "id": [1, 1, 1, 2, 2, 2],
            "situation": 0,
            "alternative": list("abc") * 2,
            "x": [0.0, 1.0, 2.0, 1.0, 0.0, 0.5],
            "choice": [1, 0, 0, 0, 1, 0],
        }
    )
    assert read_frame(frame, COLUMNS, ["x"], constants=True).data.names == ("x", "asc.b", "asc.c")
