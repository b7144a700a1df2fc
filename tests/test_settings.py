"""Every setting of every engine changes something or is refused; and a time limit ends every engine in time."""

import copy
import functools
import importlib
import inspect
import time

import numpy as np
import pytest
import torch

from mxlogit import (
    DADVI,
    MCMC,
    MSLE,
    SBP,
    SVI,
    VI,
    ConvergenceWarning,
    Encoder,
    HuangWand,
    MixedLogit,
    MxlogitError,
    SpecificationError,
    Training,
)
from mxlogit.fit import Status
from mxlogit.inference.vi import flow_training
from mxlogit.simulate import simulate_choices

pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
QUICK = Training(steps=2, batch_size=20)
# Engines, each as quick as it can be, and another value of every setting.
ENGINES = {
    "newton": (
        VI(n_samples=20, correct=False, flow=None),
        {
            "optimizer": "natural",
            "polish": 7,
            "flow": "affine",
            "flow_layers": 2,
            "draws": 8,
            "tail": None,
            "tolerance": 3.0,
            "max_iterations": 1,
            "correct": True,
            "population_family": "spline",
            "n_samples": 12,
        },
    ),
    "spline": (VI(draws=16, n_samples=20, correct=False, flow="spline"), {"flow_layers": 2}),
    "natural": (
        VI(optimizer="natural", n_samples=20, correct=False, flow=None, draws=16),
        {
            "polish": 0,
            "flow": "affine",
            "flow_layers": 2,
            "draws": 8,
            "tail": None,
            "tolerance": 3.0,
            "max_iterations": 1,
            "correct": True,
            "population_family": "spline",
            "n_samples": 12,
            "checkpoint": "natural.checkpoint",
        },
    ),
    "adam": (
        SVI(n_samples=20, training=QUICK),
        {
            "optimizer": "lbfgs",
            "encoder": Encoder(width=16),
            "flow": None,
            "flow_layers": 2,
            "sbp": 0.5,
            "polish": 0,
            "objective": "iwae",
            "noise": "sobol",
            "draws": 8,
            "tail": None,
            "population_family": "blocks",
            "n_samples": 12,
        },
    ),
    "adam, spline": (SVI(flow="spline", n_samples=20, training=QUICK), {"flow_layers": 2}),
    "adam on a bound": (
        SVI(objective="iwae", n_samples=20, training=QUICK),
        {"sbp": SBP(0.5, draws=0.5), "polish": 2, "noise": "sobol", "draws": 8, "tail": None, "flow": "affine"},
    ),
    "adam alone": (
        SVI(encoder=None, n_samples=20, training=QUICK),
        {"flow": "affine", "flow_layers": 2, "sbp": 0.5, "polish": 2, "objective": "elbo", "noise": "sobol"}
        | {"draws": 8, "tail": None, "population_family": "diagonal"},
    ),
    "hessian_free": (
        SVI(optimizer="hessian_free", draws=16, n_samples=20, training=QUICK),
        {
            "encoder": "set",
            "flow": "affine",
            "flow_layers": 2,
            "sbp": 0.5,
            "polish": 2,
            "objective": "iwae",
            "noise": "sobol",
            "draws": 8,
            "tail": None,
            "population_family": "diagonal",
            "n_samples": 12,
        },
    ),
    "lbfgs": (
        SVI(optimizer="lbfgs", draws=16, n_samples=20, training=QUICK),
        {"encoder": "set", "flow": "affine", "flow_layers": 2, "sbp": 0.5, "polish": 2, "objective": "elbo"}
        | {"noise": "sobol", "draws": 8, "tail": None, "population_family": "diagonal", "n_samples": 12},
    ),
    "fixed draws": (
        DADVI(draws=64, polish=3, n_samples=20),
        {"objective": "elbo", "noise": "sobol", "draws": 32, "polish": 1, "tail": None, "n_samples": 12},
    ),
    "msle": (
        MSLE(n_draws=24, n_samples=20),
        {
            "n_draws": 30,
            "draws": "sobol",
            "optimizer": "bfgs",
            "covariance": "bhhh",
            "n_starts": 1,
            "antithetic": True,
            "check_draws": False,
            "max_iterations": 1,
            "tolerance": 1e-12,
            "n_samples": 12,
        },
    ),
    "gibbs": (
        MCMC(chains=2, warmup=20, samples=20),
        {
            "sampler": "nuts",
            "chains": 3,
            "warmup": 30,
            "samples": 30,
            "thin": 2,
            "start": "vi",
            "covariance_prior": HuangWand(),
            "taste_memory": 0.001,
        },
    ),
    "nuts": (
        MCMC(sampler="nuts", chains=2, warmup=10, samples=4),
        {"thin": 2, "start": "vi", "covariance_prior": HuangWand(), "taste_memory": 0.0, "checkpoint": "nuts.file"},
    ),
}
# What only says where work is kept, or how long it may take: tested by themselves.
ELSEWHERE = {"training", "max_seconds", "checkpoint"}
TRAINING = {
    "steps": 3,
    "batch_size": 30,
    "learning_rate": 0.1,
    "guide_learning_rate": 0.1,
    "schedule": "constant",
    "gradient": "stl",
    "safeguard": "damping",
}


@pytest.fixture(scope="module")
def frame():
    return simulate_choices(40, 8, 3, fixed={"x": 0.5}, random={"z": (0.5, 1.0), "w": (0.3, 0.7)}, random_state=3)[0]


def facts(frame, method):
    """What a fit says, without its seconds: functions, the costliest last, since most settings change the first."""
    est = MixedLogit(fixed=["x"], random=["z", "w"], method=method, random_state=1).fit(frame)
    said = {k: v for k, v in est.diagnostics_.items() if k != "seconds"}
    return [
        est.coef_.to_numpy,
        lambda: est.posterior_samples().to_numpy(),
        lambda: [repr(said)],
        functools.cache(lambda: est.individual_coefficients(statistic=("mean", "sd")).to_numpy()),
    ]


def same_numbers(first, second):
    """The same estimates, samples and tastes, to the last bit; diagnostics count what was done."""
    return all(np.array_equal(first[i](), second[i]()) for i in (0, 1, 3))


@pytest.fixture(scope="module")
def usual(frame):
    found = {}

    def of(name):
        if name not in found:
            found[name] = facts(frame, ENGINES[name][0])
        return found[name]

    return of


def changes_something_or_is_refused(frame, before, method):
    try:
        after = facts(frame, method)
    except MxlogitError:
        return True
    return any(not np.array_equal(a(), b()) for a, b in zip(before, after, strict=True))


def test_the_tables_know_every_setting():
    for kind, names in (
        (VI, ["newton"]),
        (SVI, ["adam"]),
        (DADVI, ["fixed draws"]),
        (MSLE, ["msle"]),
        (MCMC, ["gibbs"]),
    ):
        settings = set(inspect.signature(kind).parameters)
        assert settings - ELSEWHERE == {setting for name in names for setting in ENGINES[name][1]}
        assert len(settings) <= 14
    assert set(inspect.signature(Training).parameters) == set(TRAINING)


# Engines that take seconds however small the data.
SLOW = {"fixed draws", "nuts"}


def every_setting():
    for name, (_, table) in ENGINES.items():
        for key in table:
            yield pytest.param(name, key, marks=[pytest.mark.slow] if name in SLOW or table[key] == "nuts" else [])


@pytest.mark.parametrize(("name", "setting"), list(every_setting()))
def test_no_setting_is_ignored(frame, usual, name, setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A flow that was hardly trained changes numbers as well.
    monkeypatch.setattr(flow_training, "_MANY_STEPS", 10)
    monkeypatch.setattr(flow_training, "_STEPS", 10)
    method, table = ENGINES[name]
    changed = type(method)(**{**method.get_params(deep=False), setting: table[setting]})
    assert changes_something_or_is_refused(frame, usual(name), changed)


TRAINED = ["adam", "adam on a bound", "adam alone", "hessian_free", "lbfgs"]


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("setting", TRAINING)
def test_no_setting_of_training_is_ignored(frame, usual, name, setting):
    method, _ = ENGINES[name]
    training = Training(**{"steps": 2, "batch_size": 20, setting: TRAINING[setting]})
    changed = type(method)(**{**method.get_params(deep=False), "training": training})
    assert changes_something_or_is_refused(frame, usual(name), changed)


LIMITED = {
    "newton": (VI(), Status.TIME),
    "newton, weighted": (VI(correct=True), Status.TIME),
    "newton, given draws": (VI(draws=256), Status.TIME),
    "natural": (VI(optimizer="natural"), Status.TIME),
    "adam": (SVI(), Status.ITERATIONS_DONE),
    "lbfgs": (SVI(optimizer="lbfgs"), Status.ITERATIONS_DONE),
    "hessian_free": (SVI(optimizer="hessian_free"), Status.ITERATIONS_DONE),
    "fixed draws": (DADVI(), Status.TIME),
    "msle": (MSLE(n_draws=2_000), Status.TIME),
    "msle, bfgs": (MSLE(n_draws=2_000, optimizer="bfgs"), Status.TIME),
    "gibbs": (MCMC(samples=50_000), Status.TIME),
    "nuts": (MCMC(sampler="nuts", chains=2, warmup=10, samples=2_000), Status.TIME),
}


@pytest.mark.parametrize("name", LIMITED)
def test_a_time_limit_ends_every_engine(name):
    """With what it has, and says so. What it has may be little: estimates are finite, and far from nothing."""
    people = {"nuts": 15, "fixed draws": 50}.get(name, 400)
    frame, _ = simulate_choices(people, 4, 3, random={"x": (-1.0, 0.5), "z": (0.5, 1.0)}, random_state=3)
    method, status = LIMITED[name]
    method = type(method)(**{**method.get_params(deep=False), "max_seconds": 0.05})
    begin = time.process_time()
    est = MixedLogit(random=["x", "z"], method=method, random_state=1).fit(frame)
    assert est.result_.status is status
    # The machine may be busy, and a first import counts: what none would do without a limit.
    assert time.process_time() - begin < 20.0
    assert np.isfinite(est.posterior_samples().to_numpy()).all()
    assert est.coef_["x"] < -0.2


def test_time_that_is_enough_changes_nothing(frame):
    first, second = (facts(frame, VI(n_samples=20, flow=None, max_seconds=seconds)) for seconds in (None, 1_000.0))
    assert same_numbers(first, second)


@pytest.mark.parametrize("settings", [{"correct": False}, {"draws": 64, "correct": False}, {"correct": True}], ids=str)
def test_a_fit_that_time_ended_goes_on_from_its_file(frame, tmp_path, settings):
    """To the same answer; the file stays until then."""
    settings = {"n_samples": 20, "flow": None, **settings}
    whole = facts(frame, VI(**settings))
    path = tmp_path / "fit.checkpoint"
    with pytest.warns(ConvergenceWarning, match="max_seconds"):
        begun = MixedLogit(
            fixed=["x"], random=["z", "w"], method=VI(max_seconds=1e-3, checkpoint=path, **settings), random_state=1
        ).fit(frame)
    assert begun.result_.status is Status.TIME
    assert path.exists()
    resumed = facts(frame, VI(checkpoint=path, **settings))
    assert same_numbers(whole, resumed)
    assert not path.exists()


def test_chains_that_time_ended_go_on_from_their_file(frame, tmp_path):
    """To as many samples as were asked for."""
    path = tmp_path / "chains"
    settings = {"chains": 2, "warmup": 20, "samples": 60}
    with pytest.warns(ConvergenceWarning, match="max_seconds"):
        MixedLogit(
            fixed=["x"], random=["z", "w"], method=MCMC(max_seconds=1e-3, checkpoint=path, **settings), random_state=1
        ).fit(frame)
    assert path.exists()
    resumed = MixedLogit(fixed=["x"], random=["z", "w"], method=MCMC(checkpoint=path, **settings), random_state=1).fit(
        frame
    )
    assert resumed.result_.chains.shape[:2] == torch.Size([2, 60])
    assert not path.exists()


@pytest.mark.parametrize(
    "settings", [VI(), SVI(), DADVI(), MSLE(), MCMC(), Training(), Encoder(), SBP()], ids=lambda x: type(x).__name__
)
def test_every_setting_has_a_rule(settings):
    """A table per class; `SVI(sbp=)` and `Encoder(covariance=)` are checked by what they mean."""
    rules = importlib.import_module(type(settings).__module__)._RULES
    names = set(inspect.signature(type(settings)).parameters)
    elsewhere = {"SVI": {"sbp"}, "Encoder": {"covariance"}}.get(type(settings).__name__, set())
    assert set(rules) == names - elsewhere
    settings.check()
    for name in rules:
        other = copy.copy(settings)
        object.__setattr__(other, name, object())
        with pytest.raises(SpecificationError, match=rf"^{type(settings).__name__}\({name}=\.\.\.\) must be"):
            other.check()
