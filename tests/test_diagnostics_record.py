"""The record of diagnostics: every engine fills it, and the dictionary of the public interface is made from it."""

import math
import warnings
from dataclasses import fields
from pathlib import Path

import pytest

from mxlogit import DADVI, MCMC, MSLE, SVI, VI, ConvergenceWarning, MixedLogit
from mxlogit.diagnostics.record import Diagnostics
from mxlogit.inference.svi.training import Training
from mxlogit.simulate import simulate_choices

ENGINES = {
    "vi": VI(correct=False, n_samples=50),
    "svi": SVI(training=Training(steps=10, batch_size=32)),
    "lbfgs": SVI(optimizer="lbfgs", encoder=None, training=Training(steps=3)),
    "dadvi": DADVI(draws=32, polish=1),
    "msle": MSLE(n_draws=50, n_starts=1),
    "mcmc": MCMC(chains=2, warmup=20, samples=20),
}
OF_ALL = {"status", "converged", "seconds", "log_likelihood", "log_likelihood_error", "ess", "pareto_k"}


@pytest.fixture(scope="module")
def fits():
    frame, _ = simulate_choices(40, 4, 3, fixed={"x": -1.0}, random={"z": (0.6, 0.8)}, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {
            name: MixedLogit(fixed=["x"], random=["z"], method=method, random_state=0).fit(frame)
            for name, method in ENGINES.items()
        }


@pytest.mark.parametrize("name", ENGINES)
def test_the_dictionary_is_the_record_and_the_status(fits, name):
    est = fits[name]
    record, status = est.result_.diagnostics, est.result_.status
    assert set(est.diagnostics_) >= OF_ALL
    assert est.diagnostics_["status"] == status.value
    assert est.diagnostics_["converged"] is status.converged
    for field in fields(Diagnostics):
        value = getattr(record, field.name)
        assert (field.name in est.diagnostics_) == (value is not None)
        assert value is None or est.diagnostics_[field.name] is value
    assert est.log_likelihood_ == record.log_likelihood < 0.0 < record.log_likelihood_error
    assert record.seconds > 0.0
    assert (record.passes or 1.0) > 0.0


def test_every_number_is_documented_once():
    text = Diagnostics.__doc__.split("Attributes\n")[1]
    headings = [line.strip() for line in text.splitlines() if line.startswith("    ") and " : " in line]
    named = [name.strip() for line in headings if not line.startswith(" ") for name in line.split(" : ")[0].split(",")]
    assert sorted(named) == sorted(field.name for field in fields(Diagnostics))


def test_a_record_joins_what_another_one_has():
    one = Diagnostics(log_likelihood=-5.0, ess=0.5)
    other = Diagnostics(pareto_k=0.2, ess=0.4, rejected=0, corrected=False)
    both = one.join(other)
    assert (both.log_likelihood, both.pareto_k, both.ess, both.rejected, both.corrected) == (-5.0, 0.2, 0.4, 0, False)
    assert math.isnan(both.log_likelihood_error)


def test_one_function_builds_the_fits_of_all_engines():
    """Others: models of nothing, and peers outside of the package."""
    home = Path(__file__).parent.parent / "mxlogit"
    found = {path.name for path in home.rglob("*.py") if " Fit(" in path.read_text()}
    assert found == {"fit.py", "report.py", "wrong_sign.py", "peers.py"}
