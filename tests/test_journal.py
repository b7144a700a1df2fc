"""A fit that was killed goes on from its last pass and ends at the same answer."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small_models import rebuilt

import mxlogit.execution.identity as identity
import mxlogit.inference.budgets as budgets
import mxlogit.inference.task as task
import mxlogit.inference.vi.newton as newton
import mxlogit.inference.vi.route as default
from mxlogit import MCMC, VI, MixedLogit, Priors, SpecificationError, pack_choices
from mxlogit.fit import Status
from mxlogit.inference.clock import Clock
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.simulate import simulate_choices, simulate_published_study

pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
NAMES = {"fixed": ["f1", "f2", "f3"], "random": ["r1", "r2", "r3", "r4", "r5"]}


@pytest.fixture(scope="module")
def data():
    return simulate_published_study(300, 5, 1).data


@pytest.fixture(autouse=True)
def _stages(monkeypatch):
    """Subsamples of 60 and 150 of 300 people, of which chains would follow: they have no passes to record."""
    monkeypatch.setattr(default, "run_short_chains", lambda *arguments: None)
    monkeypatch.setattr(newton, "STAGE_SIZES", (60, 150))
    monkeypatch.setattr(task, "LARGEST_SAMPLE", 150)
    monkeypatch.setattr(budgets, "MOST_PEOPLE", 60)
    monkeypatch.setattr(budgets, "MOST_SITUATIONS", 300)


def estimator(path=None, seed=4, more=None, **settings):
    method = VI(**{"n_samples": 200, "checkpoint": path, **settings})
    return MixedLogit(**{"method": method, "random_state": seed, **NAMES, **(more or {})})


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
        patch.setattr(default, "run_short_chains", lambda *arguments: None)
        patch.setattr(newton, "STAGE_SIZES", (60, 150))
        patch.setattr(task, "LARGEST_SAMPLE", 150)
        patch.setattr(budgets, "MOST_PEOPLE", 60)
        patch.setattr(budgets, "MOST_SITUATIONS", 300)
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


def heavier(data):
    weights = data.weights.clone()
    weights[5] = 2.0
    return replace(data, weights=weights)


def other_choice(data):
    chosen = data.chosen.clone()
    chosen[5, 0] = (chosen[5, 0] + 1) % 5
    return rebuilt(data, chosen=chosen)


def other_value(data):
    attributes = data.attributes.clone()
    attributes[5, 0, 0, 3] += 1e-3
    return rebuilt(data, attributes=attributes)


UNIFORM = {name: "uniform" if name == "r3" else "normal" for name in NAMES["random"]}


@pytest.mark.parametrize(
    ("request_of", "change", "words"),
    [
        ({"seed": 5}, None, "other seed"),
        ({}, lambda data: data.take(slice(0, 299)), "other data .300 people.* here 299 people"),
        ({}, lambda data: data.take(torch.arange(300).flip(0)), "other data"),
        ({}, heavier, "other data"),
        ({}, other_choice, "other data"),
        ({}, other_value, "other data"),
        ({"draws": 32}, None, r"other draws \(None; here 32\)"),
        ({"tail": None}, None, "other tail"),
        ({"correct": False}, None, "other correct"),
        ({"n_samples": 300}, None, "other n_samples"),
        ({"more": {"random": UNIFORM}}, None, "other random"),
        ({"more": {"random": NAMES["random"][::-1]}}, None, "other data .*, other random"),
        ({"more": {"correlated": False}}, None, "other correlated"),
        ({"more": {"priors": Priors(standardize=True, sd_scale=1.0)}}, None, "other priors"),
        ({"more": {"dtype": "float64"}}, None, "other dtype"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(data, interrupted, request_of, change, words):
    before = interrupted.read_bytes()
    with pytest.raises(SpecificationError, match=f"belongs to another fit: .*{words}"):
        estimator(interrupted, **request_of).fit(data if change is None else change(data))
    assert interrupted.read_bytes() == before


def test_a_checkpoint_of_another_version_is_refused(data, interrupted, monkeypatch):
    monkeypatch.setattr(identity, "version", lambda name: "0.0.9")
    with pytest.raises(SpecificationError, match="other version"):
        estimator(interrupted).fit(data)


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(data, interrupted):
    save_file({"x": torch.zeros(1)}, interrupted, {"identity": "300 people, 28 parameters, seed 1"})
    with pytest.raises(SpecificationError, match="has no identity of a fit"):
        estimator(interrupted).fit(data)


def test_what_does_not_change_the_answer_does_not_matter(data, whole, interrupted, tmp_path, capsys):
    """Another path, a progress line, a time limit of other searches, packed data instead of data in memory."""
    moved = interrupted.rename(tmp_path / "moved")
    packed = pack_choices(data, tmp_path / "pack")
    again = estimator(moved, max_seconds=1e6, more={"verbose": 1}).fit(packed)
    pd.testing.assert_series_equal(again.coef_, whole[0].coef_, rtol=1e-6)


@pytest.mark.parametrize(
    ("before", "after"), [("uniform", "normal"), ("normal", "triangular"), ("triangular", "uniform")]
)
def test_families_that_share_a_start_do_not_share_a_checkpoint(before, after, tmp_path):
    """A fit killed after its search, resumed with another mixing distribution, took the other's estimates."""
    frame, _ = simulate_choices(100, 6, 3, random={"z": (0.5, 1.8, "uniform")}, random_state=1)
    path = tmp_path / "fit.checkpoint"

    def make(family):
        return MixedLogit(random={"z": family}, method=VI(checkpoint=path, n_samples=100), random_state=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "report_fit", killed)
        with pytest.raises(KeyboardInterrupt):
            make(before).fit(frame)
    with pytest.raises(SpecificationError, match=rf"other random \(z {before}; here z {after}\)"):
        make(after).fit(frame)
    assert path.exists()
    make(before).fit(frame)
    assert not path.exists()


def killed(*given):
    raise KeyboardInterrupt


def test_a_broken_checkpoint_is_named(data, interrupted):
    interrupted.write_bytes(interrupted.read_bytes()[:-5])
    with pytest.raises(SpecificationError, match=r"fit.checkpoint' cannot be read .* Delete it"):
        estimator(interrupted).fit(data)


@pytest.mark.parametrize("steps", [3, 6, 10])
def test_time_that_ends_a_search_leaves_no_other_passes(data, tmp_path, whole, monkeypatch, steps):
    """Wherever it ends, in a subsample or among all people: what closes the fit is not what the whole one does next."""
    path, asked = tmp_path / "fit", []

    def progress(clock):
        asked.append(clock)
        return float(clock.limit is not None and len(asked) > steps)

    monkeypatch.setattr(Clock, "progress", progress)
    begun = estimator(path, max_seconds=60.0).fit(data)
    assert begun.result_.status is Status.TIME
    assert path.exists()
    pd.testing.assert_series_equal(estimator(path).fit(data).coef_, whole[0].coef_, rtol=1e-9)
    assert not path.exists()


def test_natural_steps_have_no_checkpoint():
    with pytest.raises(SpecificationError, match="checkpoint"):
        VI(optimizer="natural", checkpoint="x").check()


@pytest.mark.parametrize(
    "engine", [VI, lambda **given: MCMC(warmup=10, samples=4, chains=2, **given)], ids=["vi", "mcmc"]
)
def test_a_checkpoint_that_cannot_be_written_is_said_before_the_fit(data, tmp_path, engine, monkeypatch):
    """Below a file, in no name at all, in a name that no system has."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", "a\0b"):
        with pytest.raises(SpecificationError, match="cannot be written"):
            MixedLogit(**NAMES, method=engine(checkpoint=path), random_state=0).fit(data)
    for path in ("", 3, "."):
        with pytest.raises(SpecificationError, match="must be None or the path of a file"):
            MixedLogit(**NAMES, method=engine(checkpoint=path), random_state=0).fit(data)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_natural_steps_are_judged_by_new_draws(data):
    """What they change, not how far the last step went; and more draws change less."""
    shifts = []
    for draws in (16, 128):
        method = VI(optimizer="natural", draws=draws, correct=False, n_samples=50)
        est = MixedLogit(random=["r1", "r2"], method=method, random_state=0).fit(data)
        shifts.append(est.diagnostics_["redraw_shift"])
    assert 0.0 < shifts[1] < 0.6 * shifts[0] < 0.5
