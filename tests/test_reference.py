"""Numbers of other software (tests/reference) and of the published study."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch

from mxlogit import MixedLogit, Priors, datasets
from mxlogit.execution.people import People
from mxlogit.simulate import simulate_published_study

pytestmark = pytest.mark.reference
ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]
# So wide that the posterior mean is the maximum likelihood estimate to the digits compared.
FLAT = Priors(location_scale=1e5)


def maximum_likelihood(frame, **options):
    """Posterior mode of a multinomial logit under a flat prior: its coefficients and log likelihood."""
    from mxlogit.inference.start import fit_multinomial_logit

    est = MixedLogit(priors=FLAT, dtype="float64", random_state=0, **options).fit(frame)
    panel = est._fitted.panel
    logit = fit_multinomial_logit(
        People.gather(panel), torch.full((panel.values.shape[-1],), float("inf"), dtype=torch.float64)
    )
    return est, pd.Series(logit.coefficients.numpy(), index=est.coef_.index), logit.log_likelihood


def test_multinomial_logit_of_electricity(reference):
    expected = json.loads((reference / "msle_electricity.json").read_text())["mnl"]
    est, coef, log_likelihood = maximum_likelihood(
        datasets.load_electricity(), fixed=ELECTRICITY, situation="chid", alternative="alt"
    )
    assert log_likelihood == pytest.approx(expected["loglik"], abs=1e-4)
    for name, value in expected["estimates"].items():
        assert coef[name] == pytest.approx(value, abs=1e-5)
    assert est.log_likelihood_ == pytest.approx(expected["loglik"], abs=0.01)


def test_multinomial_logit_of_train(reference):
    expected = json.loads((reference / "msle_train.json").read_text())["mnl"]
    frame = datasets.load_train()
    frame = frame.assign(
        price=-frame["price"] / 100 * 2.20371,
        time=-frame["time"] / 60,
        change=-frame["change"],
        comfort=-frame["comfort"],
    )
    est, coef, log_likelihood = maximum_likelihood(frame, fixed=["price", "time", "change", "comfort"])
    assert log_likelihood == pytest.approx(expected["loglik"], abs=1e-3)
    for name, value in expected["estimates"].items():
        assert coef[name] == pytest.approx(value, abs=1e-6)
        assert est.summary().loc[name, "std_error"] == pytest.approx(expected["se_hessian"][name], rel=0.05)


def test_multinomial_logit_of_swissmetro(reference):
    expected = json.loads((reference / "msle_swissmetro.json").read_text())["models"]["b01a"]
    frame = datasets.load_swissmetro()
    assert frame["choice"].sum() == 6768
    _, coef, log_likelihood = maximum_likelihood(
        frame, fixed=["time", "cost"], constants=True, base_alternative="SM", availability="available"
    )
    assert log_likelihood == pytest.approx(expected["loglik"], abs=1e-4)
    names = {"asc.TRAIN": "asc_train", "asc.CAR": "asc_car", "time": "b_time", "cost": "b_cost"}
    for label, name in names.items():
        assert coef[label] == pytest.approx(expected["estimates"][name], abs=1e-5)


@pytest.fixture(scope="module")
def electricity():
    est = MixedLogit(random=ELECTRICITY, situation="chid", alternative="alt", priors=Priors(), random_state=0)
    return est.fit(datasets.load_electricity())


def test_electricity_agrees_with_nuts(electricity, reference):
    """Locations and sds within 0.15 NUTS sds, correlations within 0.25, posterior sds within 15 %."""
    nuts = json.loads((reference / "nuts_electricity.json").read_text())
    table = electricity.summary()
    for name in ELECTRICITY:
        for label, record in ((name, nuts["location"][name]), (f"sd.{name}", nuts["scale"][name])):
            assert abs(table.loc[label, "estimate"] - record["mean"]) < 0.15 * record["sd"], label
            assert table.loc[label, "std_error"] == pytest.approx(record["sd"], rel=0.15), label
    for pair, record in nuts["correlation"].items():
        assert abs(table.loc[f"cor.{pair}", "estimate"] - record["mean"]) < 0.25 * record["sd"], pair


def test_electricity_people_agree_with_nuts(electricity, reference):
    nuts = pd.read_csv(reference / "nuts_electricity_persons.csv", index_col=0)
    frame = datasets.load_electricity()
    assert (frame["id"].unique() == nuts.index).all()
    # Tables of all people take seconds.
    people, nuts = electricity.individual_coefficients(frame[frame["id"] <= 75]), nuts.loc[:75]
    for name in ELECTRICITY:
        error = (people[(name, "mean")] - nuts[f"{name}_mean"]).abs() / nuts[f"{name}_sd"]
        assert error.mean() < 0.1, name
        assert (people[(name, "sd")] / nuts[f"{name}_sd"]).mean() == pytest.approx(1.0, abs=0.05), name


def test_electricity_log_likelihood_is_near_its_maximum(electricity):
    """The maximum is -3668.0 +- 0.3 (inference notes); the posterior mean lies a little below."""
    assert -3671.0 < electricity.log_likelihood_ < -3667.0
    assert electricity.log_likelihood_error_ < 1.0
    assert electricity.diagnostics_["pareto_k"] < 0.7
    assert not any("Pareto" in sentence for sentence in electricity.result_.warnings)


def test_published_study_is_regenerated(reference):
    recipe = json.loads((reference / "simulation_study.json").read_text())["recipe"]
    shares = {(r["N"], r["T"], r["seed"]): r["percent"] for r in recipe["check_statistic"]["published"]}
    for key, share in shares.items():
        if key[0] == 500:
            assert simulate_published_study(*key).best_share == pytest.approx(share, abs=0.005)
    for record in recipe["fingerprints"]["values"]:
        if record["N"] <= 2000:
            study = simulate_published_study(record["N"], record["T"], record["seed"])
            chosen = study.data.chosen.numpy().astype(np.uint8)
            assert hashlib.sha256(chosen.tobytes()).hexdigest() == record["sha256_of_choices_as_uint8"]
