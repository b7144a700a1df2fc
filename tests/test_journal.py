"""A fit that was killed goes on from its last pass and ends at the same answer."""

import pandas as pd
import pytest
import torch

import mxlogit.inference.newton as newton
import mxlogit.inference.posterior as posterior
import mxlogit.inference.vi as vi
from mxlogit import VI, MixedLogit, SpecificationError
from mxlogit.marginal import MarginalLikelihood
from mxlogit.simulate import simulate_published_study

pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
NAMES = {"fixed": ["f1", "f2", "f3"], "random": ["r1", "r2", "r3", "r4", "r5"]}


@pytest.fixture(scope="module")
def data():
    return simulate_published_study(300, 5, 1).data


@pytest.fixture(autouse=True)
def _stages(monkeypatch):
    """Subsamples of 60 and 150 of 300 people."""
    for module in (newton, vi):
        monkeypatch.setattr(module, "STAGE_SIZES", (60, 150))
    monkeypatch.setattr(posterior, "MOST_PEOPLE", 60)
    monkeypatch.setattr(posterior, "MOST_SITUATIONS", 300)


def estimator(path=None, seed=4, **settings):
    return MixedLogit(method=VI(n_samples=200, checkpoint=path, **settings), random_state=seed, **NAMES)


class Passes:
    """Counts the sums over people that are computed, and kills the fit in one of them: the first dozen are passes."""

    def __init__(self, monkeypatch, last=None):
        self.count = 0
        for name in ("_sum_scores", "_sum_effects"):
            original = getattr(MarginalLikelihood, name)

            def counted(marginal, population, *rest, original=original):
                self.count += 1
                if last is not None and self.count > last:
                    raise KeyboardInterrupt
                return original(marginal, population, *rest)

            monkeypatch.setattr(MarginalLikelihood, name, counted)


@pytest.fixture(scope="module")
def whole(data):
    with pytest.MonkeyPatch.context() as patch:
        for module in (newton, vi):
            patch.setattr(module, "STAGE_SIZES", (60, 150))
        patch.setattr(posterior, "MOST_PEOPLE", 60)
        patch.setattr(posterior, "MOST_SITUATIONS", 300)
        passes = Passes(patch)
        return estimator().fit(data), passes.count


@pytest.mark.parametrize("last", [1, 3, 6, 8, 9])
def test_a_killed_fit_resumes(data, whole, tmp_path, last):
    est, count = whole
    assert count > last
    path = tmp_path / "deep" / "fit.checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        Passes(patch, last)
        with pytest.raises(KeyboardInterrupt):
            estimator(path).fit(data)
    assert path.exists()
    with pytest.MonkeyPatch.context() as patch:
        passes = Passes(patch)
        again = estimator(str(path)).fit(data)
    pd.testing.assert_series_equal(again.coef_, est.coef_, check_exact=True)
    assert again.log_likelihood_ == est.log_likelihood_
    assert torch.equal(again.result_.samples.unconstrained, est.result_.samples.unconstrained)
    assert passes.count == count - last
    assert [row.objective for row in again.result_.history] == [row.objective for row in est.result_.history]
    assert list(path.parent.iterdir()) == []


@pytest.fixture
def interrupted(data, tmp_path):
    path = tmp_path / "fit.checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        Passes(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            estimator(path).fit(data)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: (estimator, {"seed": 5}, data), "belongs to another fit.*seed"),
        (lambda data: (estimator, {}, data.take(slice(0, 299))), "belongs to another fit.*300 people"),
        (lambda data: (estimator, {}, data.take(torch.arange(300).flip(0))), "belongs to another fit: other data"),
        (lambda data: (estimator, {"draws": 32}, data.take(torch.arange(300).flip(0))), "belongs to another fit"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(data, interrupted, change, words):
    make, settings, other = change(data)
    before = interrupted.read_bytes()
    with pytest.raises(SpecificationError, match=words):
        make(interrupted, **settings).fit(other)
    assert interrupted.read_bytes() == before


def test_a_broken_checkpoint_is_named(data, interrupted):
    interrupted.write_bytes(interrupted.read_bytes()[:-5])
    with pytest.raises(SpecificationError, match=r"fit.checkpoint' cannot be read .* Delete it"):
        estimator(interrupted).fit(data)


def test_adam_has_no_checkpoint():
    with pytest.raises(SpecificationError, match="checkpoint"):
        VI(population="adam", checkpoint="x").check()
