"""Simulation-based calibration: its own laws on posteriors that are known, resuming, wrong settings."""

import json
import pickle
from concurrent.futures import Future

import numpy as np
import pandas as pd
import pytest

from mxlogit import MCMC, VI, MixedLogit, Priors, SpecificationError
from mxlogit.study import Calibration, Design, records, simulation_based_calibration
from mxlogit.study.calibration import _Task

SMALL = Design(people=25, situations=3, alternatives=3, ranked=19)
METHOD = VI(n_samples=100, correct=False)


def make():
    return MixedLogit(fixed=["x"], random=["z"], priors=Priors(location_scale=1.0, sd_scale=0.5))


def calibration_of(shift, width, count=400):
    """Ranks of standard normal truths among samples whose mean and spread may be wrong."""
    rng = np.random.default_rng(3)
    data = rng.standard_normal(count)
    truth = 0.5 * data + np.sqrt(0.5) * rng.standard_normal(count)
    samples = 0.5 * data[:, None] + shift + width * np.sqrt(0.5) * rng.standard_normal((count, 99))
    ranks = pd.DataFrame({"a": (samples < truth[:, None]).sum(1)})
    return Calibration(ranks, 99, pd.DataFrame(index=ranks.index), pd.Series([True] * count))


def test_a_right_posterior_is_inside_the_bands():
    known = calibration_of(0.0, 1.0)
    assert known.coverage["inside"].all()
    assert known.histogram().loc["p value", "a"] > 0.01
    assert known.histogram().iloc[:-1]["a"].sum() == 400


@pytest.mark.parametrize(("shift", "width"), [(0.3, 1.0), (0.0, 0.7), (0.0, 1.5)])
def test_a_wrong_posterior_is_found(shift, width):
    wrong = calibration_of(shift, width)
    assert wrong.histogram().loc["p value", "a"] < 1e-3
    if width != 1.0:
        assert not wrong.coverage["inside"].all()


def test_truths_come_from_the_prior():
    """Quantiles of 400 draws: normal coefficients, half-Cauchy standard deviations."""
    task = _Task(make().set_params(method=METHOD), Design(people=1, situations=1), 5)
    truths = pd.DataFrame([task.simulate(r)[0] for r in range(400)])
    assert abs(float(truths["x"].std()) - 1.0) < 0.12
    assert 0.38 < float(truths["sd.z"].median()) < 0.62
    assert (truths["sd.z"] > 0).all()


def test_choices_follow_the_truth():
    """A person's taste and its choices: the log likelihood of the truth beats that of no tastes."""
    task = _Task(make().set_params(method=METHOD), Design(people=400, situations=8), 5)
    truth, data, tastes = task.simulate(3)
    assert tastes.shape == (400, 1)
    assert tastes.mean() == pytest.approx(truth["z"], abs=4 * truth["sd.z"] / 20)
    assert tastes.std() == pytest.approx(truth["sd.z"], rel=0.2)
    coefficients = np.column_stack([np.full(400, truth["x"]), tastes[:, 0]])
    utility = np.einsum("ntjk,nk->ntj", data.attributes.numpy(), coefficients)
    chosen = np.take_along_axis(utility, data.chosen.numpy()[..., None], 2)[..., 0]
    log_prob = chosen - np.log(np.exp(utility).sum(2))
    assert log_prob.mean() > np.log(1 / 3) + 0.02


def test_a_stopped_study_goes_on(tmp_path):
    path = tmp_path / "study.jsonl"
    first = simulation_based_calibration(make(), METHOD, 3, design=SMALL, path=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    second = simulation_based_calibration(make(), METHOD, 4, design=SMALL, path=path)
    pd.testing.assert_frame_equal(second.ranks.iloc[:3], first.ranks)
    assert list(second.ranks.columns) == ["x", "z", "sd.z"]
    assert second.people.shape == (4, 3)
    assert second.ranks.to_numpy().min() >= 0
    assert second.ranks.to_numpy().max() <= 19
    done = [json.loads(line)["replication"] for line in path.read_text().splitlines()[1:] if line.endswith("}")]
    assert sorted(done) == [0, 1, 2, 3]
    with pytest.raises(SpecificationError, match=r"another study: .*other design"):
        simulation_based_calibration(make(), METHOD, 3, design=Design(people=26), path=path)
    for changed, words in (
        ({"priors": Priors(location_scale=2.0, sd_scale=0.5)}, "other data .*other priors"),
        ({"random": {"z": "uniform"}}, "other random"),
        ({"dtype": "float64"}, "other dtype"),
    ):
        with pytest.raises(SpecificationError, match=f"another study: .*{words}"):
            simulation_based_calibration(make().set_params(**changed), METHOD, 3, design=SMALL, path=path)
    # scikit-learn's own description of long settings is cut off in the middle.
    many = VI(n_samples=100, correct=False, draws=16, tail=6, tolerance=0.03, max_iterations=50, polish=3)
    with pytest.raises(SpecificationError, match=r"another study: .*other method: polish \('auto'; here 3\)"):
        simulation_based_calibration(make(), many, 3, design=SMALL, path=path)
    with pytest.raises(SpecificationError, match=r"another study: .*other random_state"):
        simulation_based_calibration(make(), METHOD, 3, design=SMALL, path=path, random_state=1)


class _Pickling:
    """An executor that runs tasks in this process, from and to pickles as if they came from and went to another one."""

    def __init__(self, processes, **settings):
        assert settings["mp_context"].get_start_method() == "spawn"

    def __enter__(self):
        return self

    def __exit__(self, *details):
        pass

    def submit(self, task, key):
        future, (task, key) = Future(), pickle.loads(pickle.dumps((task, key)))
        future.set_result(pickle.loads(pickle.dumps(task(key))))
        return future


@pytest.mark.parametrize("executor", [_Pickling, pytest.param(records.ProcessPoolExecutor, marks=pytest.mark.slow)])
def test_processes_do_not_matter(executor, monkeypatch):
    monkeypatch.setattr(records, "ProcessPoolExecutor", executor)
    alone = simulation_based_calibration(make(), METHOD, 3, design=SMALL)
    both = simulation_based_calibration(make(), METHOD, 3, design=SMALL, processes=2)
    pd.testing.assert_frame_equal(alone.ranks, both.ranks)


def test_mcmc_can_be_studied():
    found = simulation_based_calibration(make(), MCMC(chains=2, warmup=30, samples=30), 2, design=SMALL)
    assert found.ranks.shape == (2, 3)
    assert found.converged.dtype == bool


def test_plot():
    pytest.importorskip("matplotlib").use("agg")
    axes = calibration_of(0.0, 1.0).plot()
    assert axes[0].get_xlabel() == "rank of a (in 10 bins)"


@pytest.mark.parametrize("options", [{"n_replications": 0}, {"processes": 0}, {"method": "gibbs"}])
def test_wrong_settings(options):
    with pytest.raises(SpecificationError):
        simulation_based_calibration(make(), **options)
