"""Results are immutable: read from several threads at once they say what they say to one, and carry no buffers."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from mxlogit import MCMC, MSLE, SVI, VI, MixedLogit, Training
from mxlogit.simulate import simulate_choices

pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
THREADS, READINGS = 3, 2
# Few samples, since tables average over populations; what is read for each is the same.
METHODS = {
    "vi": VI(n_samples=6, draws=16),
    "flow": VI(n_samples=6, draws=16, flow="affine", correct=False),
    "encoder": SVI(polish=0, flow=None, n_samples=6, training=Training(steps=30)),
    "msle": MSLE(n_draws=50, n_samples=6, check_draws=False),
    "mcmc": MCMC(chains=2, warmup=20, samples=4),
}
CALLS = {
    "moments": lambda est, frame: est.individual_coefficients(),
    "quantiles": lambda est, frame: est.individual_coefficients(statistic=[0.1, 0.9]),
    "new people": lambda est, frame: est.individual_coefficients(frame),
    "individual probabilities": lambda est, frame: est.predict_proba(frame, tastes="individual").to_frame(),
    "probabilities": lambda est, frame: est.predict_proba(frame).to_frame(),
    "score": lambda est, frame: pd.DataFrame([est.score(frame)]),
    "loo": lambda est, frame: est.loo().pointwise if est.result_.samples.kind == "posterior" else pd.DataFrame(),
}


@pytest.fixture(scope="module")
def frame():
    random = {"z": (0.5, 1.0), "w": (-0.5, 0.8)}
    return simulate_choices(100, 3, 3, fixed={"x": 0.5}, random=random, random_state=1)[0]


@pytest.fixture(scope="module", params=list(METHODS))
def est(request, frame):
    return MixedLogit(fixed=["x"], random=["z", "w"], method=METHODS[request.param], random_state=0).fit(frame)


@pytest.fixture(scope="module")
def sizes(est):
    """Of pickles of what a fit holds, before anything was read."""
    return len(pickle.dumps(est.result_)), len(pickle.dumps(est._fitted))


@pytest.fixture(scope="module")
def wanted(est, frame, sizes):
    """Every reading, by one thread."""
    return {name: call(est, frame) for name, call in CALLS.items()}


def test_threads_read_what_one_reads(est, frame, wanted):
    # All kinds of readings at once, each several times.
    names = [name for _ in range(READINGS) for name in CALLS]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda name: CALLS[name](est, frame), names))
    for name, table in zip(names, found, strict=True):
        pd.testing.assert_frame_equal(table, wanted[name], check_exact=True, obj=name)


def test_reading_changes_nothing(est, sizes, wanted):
    assert len(pickle.dumps(est.result_)) == sizes[0]
    assert len(pickle.dumps(est._fitted)) == sizes[1]


def test_a_pickle_holds_panels_and_samples(est, frame, wanted):
    """Attributes, samples twice (unconstrained and reported), chains; little else but networks and states of tastes."""
    fit, panel = est.result_, est._fitted.panel
    tensors = [panel.values, panel.weights, panel.n_situations, panel.appearance]
    tensors += [fit.samples.unconstrained, fit.samples.reported, fit.chains]
    needed = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    assert needed < len(pickle.dumps(est)) < needed + 200_000
    again = pickle.loads(pickle.dumps(est))
    for name in ("moments", "individual probabilities"):
        pd.testing.assert_frame_equal(CALLS[name](again, frame), wanted[name], check_exact=True)


def test_networks_are_trained_in_threads_as_alone(frame):
    """Pyro has one stack of handlers and torch one generator for all threads: fits in several of them take turns."""
    method = SVI(n_samples=6, training=Training(steps=15, batch_size=40))
    wanted = MixedLogit(random=["z", "w"], method=method, random_state=2).fit(frame).coef_

    def fit(_):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return MixedLogit(random=["z", "w"], method=method, random_state=2).fit(frame).coef_

    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(fit, range(THREADS)):
            assert found.equals(wanted)
