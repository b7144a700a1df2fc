"""Functions of parameters, Wald and likelihood-ratio tests: closed forms and false-alarm rates."""

import numpy as np
import pytest
from scipy.stats import chi2

from mxlogit import (
    MSLE,
    VI,
    MixedLogit,
    NotFittedError,
    SpecificationError,
    likelihood_ratio_test,
    parameter_function,
    wald_test,
)
from mxlogit.simulate import simulate_choices


@pytest.fixture(scope="module")
def frame():
    made, _ = simulate_choices(
        400, 8, 3, fixed={"x": 1.0}, random={"z": (0.5, 1.0), "w": (0.3, 0.8)}, correlation=0.4, random_state=9
    )
    return made.assign(noise=np.random.default_rng(2).normal(size=len(made)))


def fit(frame, fixed=("x",), random=("z", "w"), **options):
    settings = {"n_draws": 200, "n_starts": 1, "check_draws": False, "covariance": "hessian"}
    correlated = options.pop("correlated", True)
    method = MSLE(**{**settings, **options})
    return MixedLogit(fixed=fixed, random=random, correlated=correlated, method=method, random_state=3).fit(frame)


@pytest.fixture(scope="module")
def full(frame):
    return fit(frame, fixed=("x", "noise"))


@pytest.fixture(scope="module")
def restricted(frame):
    return fit(frame)


def test_delta_method_of_a_ratio_by_hand(full):
    """Var(a / b) = (V_aa - 2 (a/b) V_ab + (a/b)^2 V_bb) / b^2."""
    table = parameter_function(full, lambda b: {"ratio": b["z"] / b["x"]})
    labels = list(full.coef_.index)
    i, j = labels.index("z"), labels.index("x")
    v = full.result_.covariance.numpy()
    a, b = full.coef_["z"], full.coef_["x"]
    variance = (v[i, i] - 2 * (a / b) * v[i, j] + (a / b) ** 2 * v[j, j]) / b**2
    assert table.loc["ratio", "estimate"] == pytest.approx(a / b)
    assert table.loc["ratio", "std_error"] == pytest.approx(np.sqrt(variance), rel=1e-6)


def test_delta_method_of_a_parameter_is_its_standard_error(full):
    table = parameter_function(full, lambda b: b)
    np.testing.assert_allclose(table["std_error"], full.summary()["std_error"], rtol=1e-6)
    np.testing.assert_allclose(table["lower"], full.summary()["lower"], rtol=1e-6)


def test_samples_agree_with_the_delta_method_where_functions_are_nearly_linear(full):
    """4,000 draws: standard errors within 6 %, limits within a seventh of a standard error."""
    delta = parameter_function(full, lambda b: b["z"] / b["x"])
    samples = parameter_function(full, lambda b: b["z"] / b["x"], method="samples")
    assert samples["std_error"][0] == pytest.approx(delta["std_error"][0], rel=0.06)
    for side in ("lower", "upper"):
        assert samples[side][0] == pytest.approx(delta[side][0], abs=0.15 * delta["std_error"][0])


def test_functions_of_a_posterior_use_its_samples(frame):
    est = MixedLogit(fixed=["x"], random=["z"], method=VI(), random_state=0).fit(frame)
    table = parameter_function(est, lambda b: b["z"])
    assert table["std_error"][0] == pytest.approx(est.summary().loc["z", "std_error"], rel=1e-9)
    with pytest.raises(SpecificationError, match="method='samples'"):
        parameter_function(est, lambda b: b["z"], method="delta")
    with pytest.raises(SpecificationError, match="msle"):
        wald_test(est, ["z"])


def test_wald_of_one_parameter_is_z_squared(full):
    test = wald_test(full, ["noise"])
    z = full.summary().loc["noise", "z"]
    assert test.statistic == pytest.approx(z**2, rel=1e-6)
    assert test.p_value == pytest.approx(full.summary().loc["noise", "p"], rel=1e-6)
    assert "noise = 0" in str(test)


def test_wald_of_values_and_of_functions_agree(full):
    by_values = wald_test(full, {"x": 1.0, "z": 0.5})
    by_function = wald_test(full, lambda b: [b["x"] - 1.0, b["z"] - 0.5])
    assert by_values.statistic == pytest.approx(by_function.statistic, rel=1e-8)
    assert by_values.degrees_of_freedom == 2
    assert by_values.p_value > 0.01


def test_likelihood_ratio_wald_and_truth_agree(restricted, full, frame):
    """A column without effect: both statistics are small and equal to a tenth; a real effect is found."""
    ratio, wald = likelihood_ratio_test(restricted, full), wald_test(full, ["noise"])
    values = [e.diagnostics_["simulated_log_likelihood"] for e in (restricted, full)]
    assert ratio.statistic == pytest.approx(2 * (values[1] - values[0]))
    assert ratio.p_value == pytest.approx(chi2.sf(ratio.statistic, 1))
    assert ratio.statistic == pytest.approx(wald.statistic, rel=0.1, abs=0.05)
    assert ratio.p_value > 0.01
    independent = fit(frame, correlated=False)
    assert likelihood_ratio_test(independent, restricted).p_value < 0.01
    fixed = fit(frame, fixed=("x", "w"), random=("z",))
    boundary = likelihood_ratio_test(fixed, fit(frame, correlated=False))
    assert boundary.p_value < 1e-6
    assert "boundary" in boundary.sentence


def test_noise_of_draws_is_told_where_models_are_compared(frame, restricted, full):
    """With eight draws log likelihoods are several units off, and so is their difference; with 200 it is not."""
    assert "draws count" not in str(likelihood_ratio_test(restricted, full))
    rough = [fit(frame, n_draws=8), fit(frame, fixed=("x",), random=("z",), n_draws=8)]
    told = likelihood_ratio_test(rough[1], rough[0])
    assert "The draws count" in told.sentence
    by_sampling = rough[0].diagnostics_["log_likelihood"] - rough[1].diagnostics_["log_likelihood"]
    assert f"by {by_sampling:.2f} +-" in told.sentence
    assert abs(by_sampling - 0.5 * told.statistic) > 1.0


def test_wrong_comparisons_are_explained(restricted, full, frame):
    with pytest.raises(SpecificationError, match="swapped"):
        likelihood_ratio_test(full, restricted)
    with pytest.raises(SpecificationError, match="different data"):
        likelihood_ratio_test(fit(frame[frame["id"] > 10]), full)
    with pytest.raises(SpecificationError, match="different draws"):
        likelihood_ratio_test(fit(frame, n_draws=100), full)
    with pytest.raises(SpecificationError, match="'z' is lognormal in one, normal in the other"):
        likelihood_ratio_test(fit(frame, random={"z": "lognormal", "w": "normal"}), full)
    with pytest.raises(SpecificationError, match="or the choices differ"):
        likelihood_ratio_test(fit(frame.assign(z=1.01 * frame["z"])), full)
    with pytest.raises(SpecificationError, match="level must be"):
        parameter_function(full, lambda b: b["x"], level=95)
    with pytest.raises(NotFittedError):
        wald_test(MixedLogit(fixed=["x"]), ["x"])
    with pytest.raises(SpecificationError, match=r"no such parameters: \['sd.q'\]"):
        wald_test(full, ["sd.q"])
    with pytest.raises(SpecificationError, match="are redundant"):
        wald_test(full, lambda b: [b["x"], 2 * b["x"]])


@pytest.mark.calibration
def test_wald_and_likelihood_ratio_have_their_size():
    """60 data sets without an effect: rejections at 10 % lie inside the 99.9 % binomial band, 0 to 16."""
    rejections = {"wald": 0, "ratio": 0}
    for seed in range(60):
        made, _ = simulate_choices(
            200, 6, 3, fixed={"x": 1.0, "noise": 0.0}, random={"z": (0.5, 0.8)}, random_state=seed
        )
        one, other = fit(made, random=("z",)), fit(made, fixed=("x", "noise"), random=("z",), covariance="robust")
        rejections["wald"] += wald_test(other, ["noise"]).p_value < 0.1
        rejections["ratio"] += likelihood_ratio_test(one, other).p_value < 0.1
    assert max(rejections.values()) <= 16, rejections
    assert min(rejections.values()) >= 1, rejections
