"""Comparison of models of the same people, fits by group, and scikit-learn's cross-validation by person."""

import warnings

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, cross_validate

from mxlogit import (
    MSLE,
    VI,
    ChoiceDataError,
    ConvergenceWarning,
    MixedLogit,
    NotFittedError,
    SpecificationError,
    compare_models,
    fits_by,
    likelihood_ratio_test,
)
from mxlogit.simulate import simulate_choices

QUICK = VI(n_samples=500, correct=False)


@pytest.fixture(scope="module")
def frame():
    frame = simulate_choices(120, 5, 3, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=2)[0]
    return frame.assign(group=np.where(frame["id"] % 3 == 0, "few", "many"))


def make(random=(), fixed=(), method=QUICK):
    return MixedLogit(fixed=list(fixed), random=list(random), method=method, random_state=1)


@pytest.fixture(scope="module")
def models(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {
            "logit": make(fixed=["x", "z"]).fit(frame),
            "without x": make(random=["z"]).fit(frame),
            "mixed": make(fixed=["x"], random=["z"]).fit(frame),
        }


def test_the_best_model_is_first_and_differences_are_paired(models):
    table = compare_models(models)
    assert table.index[0] == "mixed"
    assert (table["elpd_difference"].iloc[1:] < 0.0).all()
    for name in ("logit", "without x"):
        gap, error = models[name].loo().minus(models["mixed"].loo())
        assert table.loc[name, "elpd_difference"] == pytest.approx(gap)
        assert table.loc[name, "difference_error"] == pytest.approx(error)
    assert table.loc["mixed", "parameters"] == 3
    assert table.loc["mixed", "aic"] == pytest.approx(-2.0 * models["mixed"].log_likelihood_ + 6.0)
    assert table.loc["mixed", "bic"] == pytest.approx(-2.0 * models["mixed"].log_likelihood_ + 3.0 * np.log(120))


def test_nested_maximum_likelihood_fits_are_tested(frame):
    method = MSLE(n_draws=100, check_draws=False)
    small, large = (make(random=["z"], fixed=fixed, method=method).fit(frame) for fixed in ([], ["x"]))
    table = compare_models([small, large])
    assert table.loc["model 2", "p_nested"] == pytest.approx(likelihood_ratio_test(small, large).p_value)
    assert table["elpd"].isna().all()
    assert table.index[0] == "model 2"


def test_groups_have_fits_of_their_own(frame):
    est = make(fixed=["x", "z"])
    found = fits_by(est, frame, "group", level=0.9)
    alone = make(fixed=["x", "z"]).fit(frame[frame["group"] == "few"])
    np.testing.assert_allclose(found.loc["few"], alone.summary(0.9))
    assert found.index.get_level_values("group").unique().tolist() == ["all", "few", "many"]
    likelihood = found.attrs["log_likelihood"]
    assert likelihood["few"] + likelihood["many"] > likelihood["all"] - 1.0
    assert not hasattr(est, "result_")


def test_cross_validation_by_person(frame):
    scores = cross_validate(make(fixed=["x", "z"]), frame, groups=frame["id"], cv=GroupKFold(3))["test_score"]
    assert (scores > np.log(1.0 / 3.0)).all()


MISTAKES = {
    "one": (lambda m, f: compare_models([m["logit"]]), SpecificationError, "at least two models"),
    "not fitted": (lambda m, f: compare_models({"a": m["logit"], "b": make(["z"])}), NotFittedError, "b is not fitted"),
    "other people": (
        lambda m, f: compare_models([m["logit"], make(fixed=["x"]).fit(f[f["id"] > 10])]),
        SpecificationError,
        "different choices",
    ),
    "other labels": (
        lambda m, f: compare_models([m["logit"], make(fixed=["x"]).fit(f.assign(id=f["id"] + 1))]),
        SpecificationError,
        "labels of decision makers",
    ),
    "no column": (lambda m, f: fits_by(make(fixed=["x"]), f, "groups"), ChoiceDataError, "Did you mean 'group'"),
    "varies": (lambda m, f: fits_by(make(fixed=["x"]), f, "situation"), ChoiceDataError, "within 120 decision makers"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes_are_told_in_a_sentence(models, frame, mistake):
    call, error, words = MISTAKES[mistake]
    with pytest.raises(error, match=words):
        call(models, frame)
