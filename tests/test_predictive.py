"""Leave-one-person-out and WAIC against refits without the person and against the laws of information criteria."""

import numpy as np
import pandas as pd
import pytest
import torch

from mxlogit import MSLE, VI, MixedLogit, SpecificationError
from mxlogit.results.predictive import leave_one_out, log_densities, widely_applicable
from mxlogit.simulate import simulate_choices


@pytest.fixture(scope="module")
def frame():
    return simulate_choices(60, 6, 3, fixed={"x": -0.7, "noise": 0.0}, random={"z": (0.5, 0.8)}, random_state=4)[0]


def make(fixed=("x",), **request):
    return MixedLogit(fixed=list(fixed), random=["z"], method=VI(n_samples=400), random_state=0, **request)


@pytest.fixture(scope="module")
def est(frame):
    return make().fit(frame)


@pytest.fixture(scope="module")
def loo(est):
    return est.loo()


def test_equals_refits_without_the_person(est, loo, frame):
    """What a fit to the others says of two people: an exact leave-one-out, up to Monte Carlo error."""
    found = loo.pointwise
    for person in (1, 60):
        others = make().fit(frame[frame["id"] != person])
        here = est._fitted.panel.take(torch.tensor([person - 1]))
        densities = log_densities(others._fitted.model, others.result_, here, 5)[:, 0]
        exact = float(densities.logsumexp(0) - np.log(len(densities)))
        assert found.loc[person, "elpd"] == pytest.approx(exact, abs=0.05)


def test_effective_parameters_and_agreement(est, loo):
    """About as many parameters as there are, not thousands; both criteria agree; below the log likelihood."""
    waic = est.waic()
    assert 1.5 < loo.parameters < 4.5
    assert loo.elpd == pytest.approx(waic.elpd, abs=0.3)
    assert loo.elpd < est.log_likelihood_
    assert loo.elpd == pytest.approx(loo.pointwise["elpd"].sum())
    assert len(loo.pointwise) == 60
    assert loo.people_above_k == 0.0
    assert np.isnan(waic.people_above_k)


def test_differences_are_paired(loo, frame):
    """A random taste that is there is found; the error of the difference is far below that of either."""
    plain = MixedLogit(fixed=["x", "z"], method=VI(n_samples=400), random_state=0).fit(frame)
    gap, error = loo.minus(plain.loo())
    assert gap > 0
    assert error < 0.7 * loo.elpd_error
    fewer = make().fit(frame[frame["id"] <= 20])
    with pytest.raises(SpecificationError, match="different decision makers"):
        loo.minus(fewer.loo())


def test_weights_count_people(est, generator):
    densities = -5.0 + 0.1 * torch.randn(300, 4, generator=generator, dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 1.0, 1.0])
    once = leave_one_out(densities, torch.ones(4), np.arange(4))
    twice = leave_one_out(densities, weights, np.arange(4))
    assert twice.elpd == pytest.approx(once.elpd + once.pointwise["elpd"][1])
    assert widely_applicable(densities, weights, np.arange(4)).elpd == pytest.approx(twice.elpd, abs=0.02)


def test_an_estimator_has_no_predictive_density(frame):
    est = make().set_params(method=MSLE(n_draws=50, check_draws=False)).fit(frame)
    with pytest.raises(SpecificationError, match="need a posterior"):
        est.loo()


def test_weights_are_counts_in_errors_too(frame):
    """People given once with a weight, and as often as it says: sums and their errors are the same."""
    count = 1 + frame["id"] % 3
    listed = pd.concat([frame[count > k].assign(id=lambda d, k=k: d["id"] + 1_000 * k) for k in range(3)])
    weighted = make(weights="n", weights_sum="given").fit(frame.assign(n=count))
    repeated = make().fit(listed)
    one, other = weighted.loo(), repeated.loo()
    assert one.elpd == pytest.approx(other.elpd, abs=0.5)
    assert one.elpd_error == pytest.approx(other.elpd_error, rel=0.02)
    fixed = [
        MixedLogit(fixed=["x", "z"], random_state=0, **more) for more in ({"weights": "n", "weights_sum": "given"}, {})
    ]
    gaps = [
        mixed.minus(plain.fit(data).loo())
        for mixed, plain, data in ((one, fixed[0], frame.assign(n=count)), (other, fixed[1], listed))
    ]
    assert gaps[0][0] == pytest.approx(gaps[1][0], abs=0.5)
    assert gaps[0][1] == pytest.approx(gaps[1][1], rel=0.05)
