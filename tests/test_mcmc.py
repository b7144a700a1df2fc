"""`MCMC` as users meet it: results, weights, interrupts, wrong settings, and agreement with NUTS, bayesm and VI."""

import json
import pickle
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from mxlogit import (
    MCMC,
    VI,
    ConvergenceWarning,
    HuangWand,
    InverseWishart,
    MixedLogit,
    Priors,
    SpecificationError,
    datasets,
)
from mxlogit.inference.mcmc import gibbs_run
from mxlogit.sampling import trace
from mxlogit.simulate import simulate_choices

ELECTRICITY = ["pf", "cl", "loc", "wk", "tod", "seas"]
SHORT = {"chains": 2, "warmup": 60, "samples": 40}


@pytest.fixture(scope="module")
def frame():
    frame, _ = simulate_choices(80, 6, 3, fixed={"x": -0.7}, random={"z": (0.5, 0.8), "w": (-0.4, 0.6)}, random_state=4)
    return frame


def make(method=None, **request):
    request = {"fixed": ["x"], "random": ["z", "w"], "random_state": 0, **request}
    return MixedLogit(method=MCMC(**SHORT) if method is None else method, **request)


def fit(est, frame):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        est.fit(frame)
    return est, " ".join(str(w.message) for w in caught)


@pytest.fixture(scope="module")
def short(frame):
    """A fit of two short chains, and what it said."""
    return fit(make(), frame)


def test_agrees_with_variational_inference(frame):
    """Posteriors of two engines under the same priors: means within a third of an sd, sds within a fifth."""
    method = MCMC(chains=8, warmup=80, samples=100)
    sampled, _ = fit(make(method), frame)
    found = make(VI(n_samples=200)).fit(frame)
    here, there = sampled.summary(), found.summary()
    locations = ["x", "z", "w"]
    gap = (here["estimate"] - there["estimate"]) / here["std_error"]
    assert float(gap[locations].abs().max()) < 0.33
    ratio = there["std_error"] / here["std_error"]
    assert ratio[locations].between(0.8, 1.25).all()
    assert sampled.log_likelihood_ == pytest.approx(found.log_likelihood_, abs=2.0)
    some = frame[frame["id"] <= 40]
    people = sampled.individual_coefficients().loc[:40], found.individual_coefficients(some)
    error = (people[0]["z"]["mean"] - people[1]["z"]["mean"]) / people[0]["z"]["sd"]
    assert float(error.abs().mean()) < 0.15
    assert list(here.columns) == ["estimate", "std_error", "lower", "upper", "rhat", "ess"]


def test_a_fit_has_what_other_engines_have(short, frame):
    est, _ = short
    assert est.result_.chains.shape == (2, 40, len(est.coef_))
    assert len(est.posterior_samples()) == 80
    assert list(est.posterior_samples(10).columns) == list(est.coef_.index)
    np.testing.assert_allclose(est.coef_, est.posterior_samples().mean(), rtol=1e-9)
    for name in ("rhat", "ess_bulk", "ess_tail", "seconds", "acceptance_people", "acceptance_population"):
        assert est.diagnostics_[name] > 0
    tastes = est.individual_coefficients(statistic=("mean", "sd", 0.5))
    assert tastes.shape == (80, 6)
    assert (tastes.xs("sd", axis=1, level="statistic") > 0).all(axis=None)
    middle, mean, sd = (tastes.xs(name, axis=1, level="statistic") for name in (0.5, "mean", "sd"))
    assert float(((middle - mean) / sd).abs().max().max()) < 0.6
    assert est.predict_proba(frame).groupby([frame["id"], frame["situation"]]).sum().to_numpy() == pytest.approx(1.0)
    assert est.predict_proba(frame, tastes="individual").between(0, 1).all()
    again = pickle.loads(pickle.dumps(est))
    pd.testing.assert_series_equal(again.coef_, est.coef_)
    pd.testing.assert_frame_equal(again.individual_coefficients(), est.individual_coefficients())


def test_the_same_seed_gives_the_same_chains(short, frame):
    first, second = short[0], fit(clone(make()), frame)[0]
    pd.testing.assert_series_equal(first.coef_, second.coef_)
    other = fit(make(random_state=1), frame)[0]
    assert (other.coef_ - first.coef_).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        ({"random": []}, {}),
        ({"fixed": [], "random": {"z": "lognormal", "w": "normal"}}, {}),
        ({"random": {"z": "uniform", "w": "triangular"}, "correlated": False}, {}),
        ({"random": {"z": "truncated_normal"}}, {"chains": 4, "warmup": 120, "samples": 150}),
        ({}, {"covariance_prior": InverseWishart()}),
        ({"correlated": False}, {"covariance_prior": HuangWand()}),
        ({}, {"thin": 3}),
    ],
)
def test_every_kind_of_model_comes_to_where_variational_inference_does(frame, request_, options):
    """Short chains: a log likelihood within half a nat, fixed coefficients and locations within an sd or two.

    Eighty samples have not seen the far tail of a truncated normal's location.
    """
    settings = {**SHORT, **options}
    est, _ = fit(make(MCMC(**settings), **request_), frame)
    vi, _ = fit(make(VI(draws=64, n_samples=400, correct=False, flow=None), **request_), frame)
    assert len(est.posterior_samples()) == settings["chains"] * settings["samples"]
    assert est.log_likelihood_ == pytest.approx(vi.log_likelihood_, abs=0.5)
    table = vi.summary()
    assert ((est.coef_ - table["estimate"]) / table["std_error"]).abs().max() < 2.5
    assert (est.summary()["std_error"] / table["std_error"]).between(0.5, 2.0).all()
    if "x" in est.coef_:
        assert abs(est.coef_["x"] - vi.coef_["x"]) < table.loc["x", "std_error"]


def test_a_weight_is_a_number_of_people(frame):
    """Weight two is the person listed twice."""
    some = frame[frame["id"] <= 40]
    twice = pd.concat([some.assign(id=2 * some["id"]), some.assign(id=2 * some["id"] + 1)]).sort_values(
        ["id", "situation"], kind="stable"
    )
    weighted, _ = fit(make(weights="weight"), some.assign(weight=2.0))
    listed, _ = fit(make(), twice)
    pd.testing.assert_series_equal(weighted.coef_, listed.coef_, rtol=1e-3, atol=1e-3)
    assert weighted.individual_coefficients().shape == (40, 4)
    with pytest.raises(SpecificationError, match="whole-number weights"):
        make(weights="weight").fit(some.assign(weight=1.5))


def test_few_states_of_tastes_where_memory_is_short(short, frame):
    est, _ = fit(make(MCMC(**SHORT, taste_memory=0.02)), frame)
    whole, _ = short
    assert 2 <= est.diagnostics_["taste_states"] < whole.diagnostics_["taste_states"] == 80
    pd.testing.assert_frame_equal(est.individual_coefficients(), whole.individual_coefficients())


def test_no_more_states_of_tastes_than_enough(short, frame, monkeypatch):
    """A pickle and predictions carry some thousand of them, however long the chains; moments are of all."""
    monkeypatch.setattr(trace, "MOST_STATES", 30)
    est, _ = fit(make(MCMC(**SHORT)), frame)
    assert est.diagnostics_["taste_states"] == len(est.result_.states.tastes) == len(est.result_.states.fixed) <= 30
    pd.testing.assert_frame_equal(est.individual_coefficients(), short[0].individual_coefficients())
    assert len(pickle.dumps(est.result_.states)) < 0.6 * len(pickle.dumps(short[0].result_.states))


class _Interrupting(MCMC):
    """Interrupted like a person would, while it samples."""

    def run(self, model, people, *, generator, callback):
        def stop(text):
            if text.startswith("sampling: iteration 50,"):
                raise KeyboardInterrupt
            callback(text)

        return super().run(model, people, generator=generator, callback=stop)


def test_an_interrupt_returns_what_was_sampled(frame):
    est, said = fit(make(_Interrupting(chains=2, warmup=60, samples=500)), frame)
    assert est.diagnostics_["iterations"] == 50
    assert est.diagnostics_["converged"] is False
    assert "Interrupted" in said
    assert len(est.posterior_samples()) == 100
    means = est.individual_coefficients().xs("mean", axis=1, level="statistic").mean()
    assert ((means - est.coef_[["z", "w"]]).abs() < 0.1).all()


class _Killed(Exception):
    pass


class _Dying(MCMC):
    """Killed when it says a certain thing."""

    last_words = "sampling: iteration 50,"

    def run(self, model, people, *, generator, callback):
        def stop(text):
            if text.startswith(self.last_words):
                raise _Killed
            callback(text)

        return super().run(model, people, generator=generator, callback=stop)


class _DyingEarly(_Dying):
    last_words = "warm-up: iteration 100,"


@pytest.fixture
def written_always(monkeypatch):
    monkeypatch.setattr(gibbs_run, "_SECONDS_BETWEEN_FILES", -1.0)


RESUMED = {"chains": 2, "warmup": 105, "samples": 55}


@pytest.fixture(scope="module")
def whole(frame):
    """The chains that nothing killed."""
    return fit(make(MCMC(**RESUMED)), frame)[0]


@pytest.mark.parametrize("dying", [_Dying, _DyingEarly])
def test_killed_chains_go_on(frame, whole, tmp_path, written_always, dying):
    path = tmp_path / "deep" / "chains"
    with pytest.raises(_Killed):
        make(dying(**RESUMED, checkpoint=path)).fit(frame)
    assert path.exists()
    resumed, _ = fit(make(MCMC(**RESUMED, checkpoint=str(path))), frame)
    assert torch.equal(resumed.result_.chains, whole.result_.chains)
    pd.testing.assert_frame_equal(resumed.individual_coefficients(), whole.individual_coefficients())
    assert resumed.diagnostics_["acceptance_people"] == whole.diagnostics_["acceptance_people"]
    assert list(path.parent.iterdir()) == []


def test_chains_of_another_run_are_refused(frame, tmp_path, written_always):
    path = tmp_path / "chains"
    with pytest.raises(_Killed):
        make(_DyingEarly(**RESUMED, checkpoint=path)).fit(frame)
    before = path.read_bytes()
    for other, data in (
        (make(MCMC(**{**RESUMED, "samples": 90}, checkpoint=path)), frame),
        (make(MCMC(**RESUMED, start="vi", checkpoint=path)), frame),
        (make(MCMC(**RESUMED, taste_memory=1.0, checkpoint=path)), frame),
        (make(MCMC(**RESUMED, checkpoint=path), random_state=1), frame),
        (make(MCMC(**RESUMED, checkpoint=path)), frame[frame["id"] < 70]),
        (make(MCMC(**RESUMED, checkpoint=path)), frame.assign(x=2.0 * frame["x"])),
        (make(MCMC(**RESUMED, checkpoint=path)), frame.assign(id=200 - frame["id"]).sort_values("id", kind="stable")),
        (make(MCMC(**RESUMED, checkpoint=path), priors=Priors(sd_scale=1.0)), frame),
        (make(MCMC(**RESUMED, checkpoint=path), random={"z": "lognormal", "w": "normal"}), frame),
    ):
        with pytest.raises(SpecificationError, match="belongs to another fit"):
            other.fit(data)
    path.write_bytes(before[:-9])
    with pytest.raises(SpecificationError, match="cannot be read"):
        make(MCMC(**RESUMED, checkpoint=path)).fit(frame)


def test_quantiles_of_people_are_those_of_their_states(frame):
    est, _ = fit(make(MCMC(chains=2, warmup=60, samples=150)), frame[frame["id"] <= 30])
    quantiles = est.individual_coefficients(statistic=[0.1, 0.9])
    states = est.result_.states.tastes.numpy()
    for column, at in ((0, 0.1), (1, 0.9)):
        known = np.quantile(states[..., 0], at, axis=0)
        spread = states[..., 0].std(0)
        assert np.abs((quantiles.iloc[:, column].to_numpy() - known) / spread).mean() < 0.1


def test_numpyro_is_asked_for_where_it_is_missing(frame, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(ImportError, match=r"mxlogit\[nuts\]"):
        make(MCMC(sampler="numpyro", **SHORT)).fit(frame)


def test_numpyro_names_the_distributions_it_knows(frame):
    with pytest.raises(SpecificationError, match="uniform"):
        make(MCMC(sampler="numpyro", **SHORT), random={"z": "uniform"}).fit(frame)


@pytest.mark.slow
def test_gibbs_against_numpyro(frame):
    """The same model written a third time, with a lognormal, an attribute missing here and there and ragged panels."""
    some = frame[~((frame["id"] % 3 == 0) & (frame["situation"] % 2 == 0))]
    request = {"random": {"z": "lognormal", "w": "normal"}}
    nuts, _ = fit(make(MCMC(sampler="numpyro", chains=2, warmup=300, samples=500), **request), some)
    gibbs, _ = fit(make(MCMC(chains=4, warmup=500, samples=2000), **request), some)
    here, there = nuts.summary(), gibbs.summary()
    gap = (here["estimate"] - there["estimate"]) / there["std_error"]
    assert float(gap.abs().max()) < 0.3
    assert (here["std_error"] / there["std_error"]).between(0.8, 1.25).all()
    assert nuts.diagnostics_["divergences"] <= 10


def test_one_chain_is_not_judged(frame):
    est, said = fit(make(MCMC(chains=1, warmup=60, samples=40)), frame)
    assert "R-hat needs at least two chains" in said
    assert est.diagnostics_["converged"] is False
    assert list(est.summary().columns) == ["estimate", "std_error", "lower", "upper"]


def test_chains_that_disagree_are_called_so(short):
    est, said = short
    assert est.diagnostics_["rhat"] > 1.01
    assert "the chains have not mixed" in said
    assert est.diagnostics_["converged"] is False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "gibs"}, "Did you mean 'gibbs'"),
        ({"chains": 0}, "chains"),
        ({"samples": 3}, "samples"),
        ({"samples": 10.5}, "samples"),
        ({"warmup": 0}, "warmup"),
        ({"thin": 0}, "thin"),
        ({"sampler": "nuts", "checkpoint": "chains"}, "checkpoint"),
        ({"covariance_prior": "wishart"}, "InverseWishart"),
        ({"covariance_prior": InverseWishart(scale=-1.0)}, "InverseWishart\\(scale"),
        ({"covariance_prior": HuangWand(0.0)}, "HuangWand"),
        ({"taste_memory": -1.0}, "taste_memory"),
        ({"start": "vy"}, "start"),
        ({"sampler": "nuts", "covariance_prior": HuangWand()}, "needs sampler='gibbs'"),
    ],
)
def test_wrong_settings(frame, options, words):
    with pytest.raises(SpecificationError, match=words):
        make(MCMC(**options)).fit(frame)


def test_nuts_on_the_pyro_program(frame):
    """Few iterations: everything is where it belongs, nothing global is touched, the same seed repeats it."""
    import pyro

    some = frame[frame["id"] <= 8]
    method = MCMC(sampler="nuts", chains=2, warmup=10, samples=4)
    first, said = fit(make(method), some)
    again, _ = fit(make(MCMC(sampler="nuts", chains=1, warmup=10, samples=4)), some)
    assert torch.equal(first.result_.chains[:1], again.result_.chains)
    assert first.result_.chains.shape == (2, 4, 6)
    assert first.individual_coefficients().shape == (8, 4)
    assert np.isfinite(first.diagnostics_["divergences"])
    assert len(pyro.get_param_store()) == 0
    assert "chains have not mixed" in said


@pytest.mark.parametrize(
    ("fixed", "random"), [([], ["z"]), pytest.param([], ["z", "x"], marks=pytest.mark.slow), (["x", "z"], [])]
)
def test_nuts_without_fixed_or_without_random_coefficients(frame, fixed, random):
    """Against the Gaussian around a mode that few iterations come near: within three posterior sds, and finite."""
    some = frame[frame["id"] <= 25]
    method = MCMC(sampler="nuts", chains=2, warmup=10, samples=4)
    est, _ = fit(make(method, fixed=fixed, random=random), some)
    near, _ = fit(make(VI(correct=False, n_samples=500), fixed=fixed, random=random), some)
    assert list(est.coef_.index) == list(near.coef_.index)
    locations = [*fixed, *random]
    gap = (est.coef_ - near.coef_)[locations] / near.summary()["std_error"][locations]
    assert gap.abs().max() < 3.0
    assert est.individual_coefficients().shape == (25, 2 * len(random))
    assert np.isfinite(est.predict_proba(some, tastes="individual")).all()


@pytest.mark.slow
@pytest.mark.parametrize(("fixed", "random"), [([], ["z"]), (["x", "z"], [])])
def test_numpyro_without_fixed_or_without_random_coefficients(frame, fixed, random):
    some = frame[frame["id"] <= 25]
    est, _ = fit(make(MCMC(sampler="numpyro", chains=1, warmup=30, samples=20), fixed=fixed, random=random), some)
    assert np.isfinite(est.coef_).all()


def test_start_at_variational_estimates(frame):
    """Chains begin around the estimates: with hardly any warm-up they are there."""
    vi, _ = fit(make(VI(n_samples=100)), frame)
    est, _ = fit(make(MCMC(chains=2, warmup=10, samples=30, start="vi")), frame)
    assert est.log_likelihood_ == pytest.approx(vi.log_likelihood_, abs=2.0)
    assert ((est.coef_ - vi.coef_) / vi.summary()["std_error"]).abs().max() < 2.0


@pytest.mark.slow
def test_gibbs_against_nuts(frame):
    """Two samplers with nothing in common but the model: means within Monte Carlo error."""
    some = frame[frame["id"] <= 60]
    nuts, _ = fit(make(MCMC(sampler="nuts", chains=2, warmup=200, samples=400)), some)
    gibbs, _ = fit(make(MCMC()), some)
    here, there = nuts.summary(), gibbs.summary()
    error = here["std_error"] / here["ess"] ** 0.5
    assert ((here["estimate"] - there["estimate"]).abs() < 4.0 * error).all()
    assert (here["std_error"] / there["std_error"]).between(0.8, 1.25).all()
    assert nuts.diagnostics_["divergences"] <= 4


def test_nuts_knows_utils_only(frame):
    with pytest.raises(SpecificationError, match="needs method='vi', 'mcmc' or 'msle'"):
        make(MCMC(sampler="nuts"), scale="x").fit(frame)


@pytest.fixture(scope="module")
def electricity():
    return datasets.load_electricity()


def fit_electricity(frame, **options):
    est = MixedLogit(
        random=ELECTRICITY,
        situation="chid",
        alternative="alt",
        priors=Priors(),
        random_state=0,
        method=MCMC(**options),
    )
    return est.fit(frame)


@pytest.mark.slow
def test_electricity_against_nuts(electricity, reference):
    """Means within .1 posterior sd, sds within 8 %, of another program's NUTS; R-hat at most 1.01."""
    known = json.loads((reference / "nuts_electricity.json").read_text())
    est = fit_electricity(electricity)
    table = est.summary()
    for label in table.index:
        group, name = "location", label
        if "." in label:
            group, name = ("scale", label[3:]) if label.startswith("sd.") else ("correlation", label[4:])
        if name not in known[group]:
            name = ":".join(reversed(name.split(":")))
        mean, deviation = known[group][name]["mean"], known[group][name]["sd"]
        assert abs(table.loc[label, "estimate"] - mean) < 0.1 * deviation, label
        assert table.loc[label, "std_error"] == pytest.approx(deviation, rel=0.08), label
    assert est.diagnostics_["rhat"] <= 1.01
    people = pd.read_csv(reference / "nuts_electricity_persons.csv", index_col="id")
    found = est.individual_coefficients()
    for name in ELECTRICITY:
        error = (found[name]["mean"] - people[f"{name}_mean"]) / people[f"{name}_sd"]
        assert float(error.abs().mean()) < 0.05
        assert float((found[name]["sd"] / people[f"{name}_sd"] - 1.0).abs().mean()) < 0.05


@pytest.mark.slow
def test_electricity_against_bayesm(electricity, reference):
    """Under bayesm's conjugate prior: its means, sds, correlations and spread of people."""
    known = json.loads((reference / "hb_electricity.json").read_text())
    est = fit_electricity(electricity, covariance_prior=InverseWishart())
    table = est.summary()
    for group, prefix in (("mu", ""), ("sd_of_beta", "sd.")):
        for name in ELECTRICITY:
            mean, deviation = known[group]["mean"][name], known[group]["sd"][name]
            assert abs(table.loc[prefix + name, "estimate"] - mean) < 0.15 * deviation
            assert table.loc[prefix + name, "std_error"] == pytest.approx(deviation, rel=0.1)
    matrix = np.array(known["correlation_posterior_mean"]["matrix"])
    for label in table.index[table.index.str.startswith("cor.")]:
        a, b = (ELECTRICITY.index(name) for name in label[4:].split(":"))
        assert table.loc[label, "estimate"] == pytest.approx(matrix[a, b], abs=0.03)
    means = est.individual_coefficients().xs("mean", axis=1, level="statistic")
    for name, spread in known["sd_over_persons_of_posterior_means"].items():
        assert float(means[name].std()) == pytest.approx(spread, rel=0.03)
