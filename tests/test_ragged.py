"""Cost follows rows of data: ragged panels and choice sets against padded ones, in every engine, and bytes and cells."""

import gc
import itertools
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import model_of

from mxlogit import MCMC, MSLE, SVI, VI, ChoiceData, MixedLogit, SpecificationError, Training, pack_choices
from mxlogit.choices.rows import pad_rows, rows_of_arrays
from mxlogit.choices.runs import first_places, places_of_runs
from mxlogit.execution.people import People
from mxlogit.guide.encoder import PublishedEncoder
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.differences import difference_panels
from mxlogit.model.layouts import Situations, size_classes
from mxlogit.model.likelihood import panel_derivatives, panel_log_prob
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import RaggedPanels
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.simulate import simulate_choices

NAMES = ["a", "b", "c"]
# Sums of the same float64 numbers in another order.
EXACT = 1e-10

SHAPES = {
    "one giant panel": lambda rng: [[2] * 200] + [[2] * int(rng.integers(1, 4)) for _ in range(30)],
    "one giant set": lambda rng: [[2, 150, 2]] + [[2] * int(rng.integers(1, 4)) for _ in range(30)],
    "one giant set in every panel": lambda rng: [[2] * 20 + [60] for _ in range(12)],
    "singles": lambda rng: [[int(rng.integers(1, 3))] for _ in range(40)],
    "nothing to choose": lambda rng: [[1], [1, 1], [3], [1, 2]],
    "all sizes": lambda rng: [list(rng.integers(1, 40, rng.integers(1, 9))) for _ in range(30)],
    "heavy tails": lambda rng: [
        list(1 + np.minimum(rng.pareto(0.8, 1 + min(60, int(rng.pareto(0.7)))), 300).astype(int)) for _ in range(40)
    ],
    "equal": lambda rng: [[3, 3]] * 7,
}


def ragged(name, seed=0, k=3):
    """Choice data whose sets have given sizes, person after person, with weights."""
    rng = np.random.default_rng(seed)
    sizes = SHAPES[name](rng)
    n, t, j = len(sizes), max(map(len, sizes)), max(max(s) for s in sizes)
    attributes = rng.normal(size=(n, t, j, k))
    available, observed, chosen = np.zeros((n, t, j), bool), np.zeros((n, t), bool), np.zeros((n, t), int)
    for person, row in enumerate(sizes):
        for situation, size in enumerate(row):
            places = rng.choice(j, size, replace=False)
            available[person, situation, places], observed[person, situation] = True, True
            chosen[person, situation] = rng.choice(places)
    weights = rng.integers(1, 4, n).astype(float)
    arrays = dict(names=NAMES[:k], available=available, observed=observed, weights=weights)
    return ChoiceData.from_arrays(torch.from_numpy(attributes), torch.from_numpy(chosen), **arrays)


def as_ragged(data):
    """Panels held as long as they are, however little of them would be padding."""
    rows, sizes = data.choices.rows, data.choices.set_sizes.long()
    keep = torch.ones(len(rows), dtype=torch.bool)
    chosen = data.first_rows[:-1] + data.choices.chosen_ranks
    keep[chosen] = False
    values = (rows - rows[chosen.repeat_interleave(sizes)])[keep]
    values = torch.cat([values, torch.zeros(1, rows.shape[1], dtype=rows.dtype)])
    facts = sizes - 1, data.choices.panel_lengths, data.weights, None, None
    return RaggedPanels(values, *facts, size_classes(sizes - 1))


def log_prob_by_hand(data, beta):
    """Log probability of each person's choices: one situation after the other."""
    totals, situation = [], 0
    for person, count in enumerate(data.choices.panel_lengths.tolist()):
        total = 0.0
        for _ in range(count):
            first, stop = data.first_rows[situation : situation + 2].tolist()
            utility = data.choices.rows[first:stop].numpy() @ beta[person].numpy()
            chosen = int(data.choices.chosen_ranks[situation])
            total += utility[chosen] - utility.max() - np.log(np.exp(utility - utility.max()).sum())
            situation += 1
        totals.append(total)
    return torch.tensor(totals)


@pytest.mark.parametrize("name", SHAPES)
def test_rows_hold_what_arrays_say(name):
    data = ragged(name)
    padded = data.padded()
    again = rows_of_arrays(padded.attributes, padded.available, padded.observed, padded.chosen)
    assert torch.equal(again.rows, data.choices.rows)
    assert torch.equal(again.chosen_ranks, data.choices.chosen_ranks)
    assert torch.equal(again.panel_lengths, data.choices.panel_lengths)
    twice = pad_rows(again, data.n_alternatives)
    for part in ("attributes", "available", "observed", "chosen"):
        assert torch.equal(getattr(twice, part), getattr(padded, part))


@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_on_any_shape(name, generator):
    data = ragged(name)
    beta = torch.randn(data.n_decision_makers, 3, generator=generator, dtype=torch.float64)
    expected = log_prob_by_hand(data, beta)
    for panels in (difference_panels(data), as_ragged(data), as_ragged(data).dense()):
        torch.testing.assert_close(panel_log_prob(beta, panels), expected, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("name", SHAPES)
def test_pieces_hold_every_person_once_and_little_padding(name):
    data = ragged(name)
    panels = as_ragged(data)
    places, cells = [], 0
    for place, piece in panels.pieces(1_000, 16):
        places += torch.arange(len(panels))[place].tolist()
        cells += piece.values.shape[0] * piece.values.shape[1]
        assert len(piece) <= 16
        assert piece.values.shape[1] == sum(s.situations * s.others for s in piece.sections)
    assert sorted(places) == list(range(len(panels)))
    real = int(panels.others.sum())
    # Half for situations of a class, a quarter for people of a group, and groups that are cheap to pad.
    assert cells <= 1.5 * 1.25 * real + 40 * len(panels)


@pytest.mark.parametrize("name", SHAPES)
def test_any_part_of_the_people(name, generator):
    data = ragged(name)
    beta = torch.randn(data.n_decision_makers, 3, generator=generator, dtype=torch.float64)
    expected = log_prob_by_hand(data, beta)
    some = torch.randperm(data.n_decision_makers, generator=generator)[:3]
    for panels in (difference_panels(data), as_ragged(data)):
        torch.testing.assert_close(
            panel_log_prob(beta[some], panels.take(some)), expected[some], atol=EXACT, rtol=EXACT
        )
        part = panels.take(slice(1, 3))
        torch.testing.assert_close(panel_log_prob(beta[1:3], part), expected[1:3], atol=EXACT, rtol=EXACT)
        assert torch.equal(part.weights, data.weights[1:3])
        assert torch.equal(part.n_situations, data.choices.panel_lengths[1:3])
    torch.testing.assert_close(
        panel_log_prob(beta[some], difference_panels(data.take(some))), expected[some], atol=EXACT, rtol=EXACT
    )


@pytest.mark.parametrize("name", ["one giant set in every panel", "all sizes", "heavy tails"])
def test_derivatives_through_sections(name, generator):
    """Situations of several sizes in one array: gradient and information as with padding."""
    piece = next(piece for _, piece in as_ragged(ragged(name)).pieces(100_000, 1_000) if len(piece.sections) > 1)
    padded = piece.single_section()
    assert len(padded.sections) == 1
    beta = torch.randn(len(piece), 3, generator=generator, dtype=torch.float64)
    one, other = (panel_derivatives((p.values @ beta[..., None])[..., 0], p) for p in (piece, padded))
    for part in ("log_prob", "gradient", "information"):
        torch.testing.assert_close(getattr(one, part), getattr(other, part), atol=EXACT, rtol=EXACT)
    far, far_padded = (panel_derivatives((p.values @ (400.0 * beta[..., None]))[..., 0], p) for p in (piece, padded))
    torch.testing.assert_close(far.log_prob, far_padded.log_prob, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("families", [("normal", "normal"), ("lognormal", "uniform")])
@pytest.mark.parametrize("name", SHAPES)
def test_scores_and_information_of_any_shape(name, families):
    space = ParameterSpace(("a",), ("b", "c"), ((0, 1),))
    data, model = ragged(name), model_of(space, families)
    location = torch.tensor([0.1, -0.2], dtype=torch.float64)
    tril = torch.tensor([[0.5, 0.0], [0.2, 0.4]], dtype=torch.float64)
    population = PopulationParameters(torch.tensor([0.3], dtype=torch.float64), location, tril)
    integration = IntegrationSettings(16, 8, 3, 20, variational_steps=1)
    found = []

    def information_of(marginal):
        return [
            marginal.information(model, population, replace(integration, pathwise=paths)) for paths in (False, True)
        ]

    for panels in (as_ragged(data), as_ragged(data).dense()):
        marginal = MarginalLikelihood(People.gather(panels), space, Mixing(families), 5)
        scores = marginal.score_pass(population, integration)
        found.append((marginal, scores, information_of(marginal)))
    (one, first, information), (other, second, expected) = found
    assert first.value.log_likelihood == pytest.approx(second.value.log_likelihood, abs=1e-9, rel=1e-9)
    torch.testing.assert_close(first.score, second.score, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(first.outer, second.outer, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(one.modes, other.modes, atol=1e-8, rtol=1e-8)
    # Louis' identity is not for maps that depend on the population, of which one is a uniform.
    for one, other in list(zip(information, expected, strict=True))["uniform" in families :]:
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


def test_classes_bound_padding():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        others = torch.from_numpy(np.minimum(rng.pareto(0.5, 500), 5_000).astype(np.int64))
        classes = torch.tensor(size_classes(others))
        padded = classes[torch.bucketize(others, classes)][others > 0]
        assert int(padded.sum()) <= 1.5 * int(others.sum())
        assert len(classes) < 40


def test_layouts_point_to_every_row_once():
    rng = np.random.default_rng(3)
    lengths = torch.from_numpy(rng.integers(1, 30, 50))
    others = torch.from_numpy(rng.integers(0, 9, int(lengths.sum())))
    total = int(others.sum())
    situations = Situations(others, lengths, size_classes(others), 0, total)
    rows = torch.cat([layout.index.flatten() for layout in situations.layouts(500, 20)])
    assert torch.equal(rows[rows < total].sort().values, torch.arange(total, dtype=rows.dtype))


def test_runs():
    lengths = torch.tensor([2, 0, 3])
    assert first_places(lengths).tolist() == [0, 2, 2, 5]
    assert places_of_runs(torch.tensor([10, 50, 20]), lengths).tolist() == [10, 11, 20, 21, 22]


def frame_of(data):
    """Long frame of choice data."""
    c = data.choices
    person = torch.arange(data.n_decision_makers).repeat_interleave(c.panel_lengths)
    situation = torch.arange(len(c.set_sizes)).repeat_interleave(c.set_sizes.long())
    rank = torch.arange(len(c.rows)) - data.first_rows[:-1][situation]
    frame = pd.DataFrame(c.rows.numpy(), columns=list(data.names))
    frame["id"], frame["situation"] = person[situation].numpy(), situation.numpy()
    frame["alternative"] = c.positions.numpy() if c.positions is not None else rank.numpy()
    frame["choice"] = (rank == c.chosen_ranks[situation]).numpy()
    frame["weight"] = data.weights[person][situation].numpy()
    return frame


@pytest.fixture(scope="module")
def unequal():
    """Real choices of people with one to four situations, one with 40, and sets of 3 and one of 12."""
    frame, _ = simulate_choices(60, (1, 4), 3, random={"a": (-1.0, 0.5), "b": (0.5, 0.5)}, random_state=1)
    giant, _ = simulate_choices(1, 40, 3, random={"a": (-1.0, 0.5), "b": (0.5, 0.5)}, random_state=2)
    big, _ = simulate_choices(1, 1, 12, random={"a": (-1.0, 0.5), "b": (0.5, 0.5)}, random_state=3)
    parts = [frame, giant.assign(id=61), big.assign(id=7, situation=99)]
    return pd.concat(parts, ignore_index=True)


METHODS = {
    "vi": VI(draws=16, n_samples=8, correct=False),
    "adam": SVI(polish=0, flow=None, n_samples=8, training=Training(steps=20, batch_size=16)),
    "hessian_free": SVI(optimizer="hessian_free", n_samples=8, training=Training(steps=2, batch_size=30)),
    "msle": MSLE(n_draws=20),
    "mcmc": MCMC(chains=2, warmup=20, samples=20),
}


@pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")
@pytest.mark.parametrize("method", METHODS)
def test_every_engine_as_with_padding(unequal, method, monkeypatch):
    """The same draws, rows in another order of summation: the same estimates."""
    # As many draws of steps from the mode as there is room for are fewer with padding.
    monkeypatch.setattr("mxlogit.inference.vi.posterior_stage._MORE_STEP_DRAWS", 1)
    est = MixedLogit(random=["a", "b"], method=METHODS[method], random_state=3, dtype="float64")
    found = est.fit(unequal).coef_
    tastes, proba = est.individual_coefficients(), est.predict_proba(unequal)
    assert isinstance(est._fitted.panel, RaggedPanels)
    monkeypatch.setattr("mxlogit.model.panels._MOST_PADDING", 1e9)
    padded = MixedLogit(random=["a", "b"], method=METHODS[method], random_state=3, dtype="float64").fit(unequal)
    assert isinstance(padded._fitted.panel, PanelDifferences)
    # Searches end where their steps are small, at the latest digits of which sums in another order have a say.
    pd.testing.assert_series_equal(found, padded.coef_, rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(tastes, padded.individual_coefficients(), rtol=1e-5, atol=1e-6)
    pd.testing.assert_series_equal(proba, padded.predict_proba(unequal), rtol=1e-6, atol=1e-8)
    assert est.score(unequal) == pytest.approx(padded.score(unequal), abs=1e-8)


@pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")
def test_a_pack_of_any_shape(unequal, tmp_path):
    """A pack takes bytes by rows and fits as the frame does."""
    packed = pack_choices(unequal, tmp_path / "pack", names=["a", "b"])
    est = MixedLogit(random=["a", "b"], method=METHODS["vi"], random_state=3, dtype="float64")
    found = est.fit(packed).coef_
    pd.testing.assert_series_equal(found, est.fit(unequal).coef_, rtol=1e-4, atol=1e-5)
    size = sum(file.stat().st_size for file in (tmp_path / "pack").iterdir())
    # Two attributes and a position of four bytes each; sizes, ranks and labels; heads of files.
    assert size < 12 * len(unequal) + 30 * packed.n_situations + 5_000


_MEMORY = """
import sys, warnings
import numpy as np, pandas as pd, torch
torch.set_num_threads(1)
from mxlogit import VI, MixedLogit
from mxlogit.simulate import simulate_choices

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) / 1024.0

truth = {"x": (-1.0, 0.6), "z": (0.5, 0.7)}
frame, _ = simulate_choices(1_000, 2, 3, random=truth, random_state=0)
if sys.argv[1] == "panel":
    giant, _ = simulate_choices(1, 20_000, 3, random=truth, random_state=1)
    frame = pd.concat([frame, giant.assign(id=10_000)], ignore_index=True)
if sys.argv[1] == "set":
    big, _ = simulate_choices(1, 1, 3_000, random=truth, random_state=1)
    frame = pd.concat([frame, big.assign(id=5, situation=999)], ignore_index=True)
est = MixedLogit(random=["x", "z"], random_state=0, method=VI(correct=False))
MixedLogit(random=["x", "z"], random_state=0, method=VI(correct=False, draws=16)).fit(frame[frame.id < 50])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
est.fit(frame)
est.predict_proba(frame)
print(status("VmHWM") - before, 16 * len(frame) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["panel", "set"])
def test_memory_follows_rows(kind):
    """Peak memory of a fit and its predictions: three times the rows and 300 MB, where padding takes gigabytes."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", _MEMORY, kind], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    peak, rows = map(float, run.stdout.split())
    assert peak < 3.0 * rows + 300.0


@pytest.mark.parametrize("columns", [0, 2])
def test_nobody(columns):
    """Panels of no decision maker, as a process without people has, and of no attributes."""
    data = ragged("equal", k=2)
    nobody = difference_panels(data.take(slice(0, 0)), list(range(columns)))
    assert len(nobody) == 0
    assert nobody.n_columns == columns
    assert list(nobody.chunks(10)) == [] or len(next(iter(nobody.chunks(10)))[1]) == 0
    some = difference_panels(data, list(range(columns)))
    beta = torch.zeros(data.n_decision_makers, columns, dtype=torch.float64)
    expected = log_prob_by_hand(data, torch.zeros(data.n_decision_makers, 2, dtype=torch.float64))
    torch.testing.assert_close(panel_log_prob(beta, some), expected, atol=EXACT, rtol=EXACT)


def test_panels_are_freed_with_their_last_name():
    """Shards of a pack are: whatever windows of theirs were met, nothing waits for a garbage collection."""
    panel = difference_panels(ragged("heavy tails"), [0, 1, 2])
    assert isinstance(panel, RaggedPanels)
    gone = weakref.ref(panel)
    gc.disable()
    try:
        for size in (3, len(panel), 2 * len(panel)):
            for _, part in panel.chunks(size):
                list(part.pieces(100, size))
        del panel, part
        assert gone() is None
    finally:
        gc.enable()


def test_threads_may_meet_people_in_windows_of_many_sizes():
    panel = difference_panels(ragged("all sizes"), [0, 1, 2])
    whole = panel.available_rows().values

    def read(size):
        for _ in range(40):
            values = [part.available_rows().values for _, part in panel.chunks(size)]
            assert sum(len(piece) for _, piece in panel.pieces(50 + size, size)) == len(panel)
            torch.testing.assert_close(torch.cat(values), whole)
        return True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(read, range(3, 9)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("name", ["all sizes", "equal"])
def test_people_of_a_fit_are_found_in_any_order(name):
    """Every permutation of four people, those that are their own inverse among them, and some of all."""
    n, k = 4, 3
    data = ragged(name).take(slice(0, n))
    data = replace(data, decision_makers=np.array(["d", "a", "c", "b"]), weights=torch.arange(1.0, 1.0 + n))
    est = MixedLogit(fixed=NAMES[:k], method=MSLE(check_draws=False), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = est.fit(data)._fitted
    weight_of = dict(zip(data.decision_makers, data.weights.tolist(), strict=True))
    for count in (2, n):
        for labels in itertools.permutations(data.decision_makers, count):
            group = fitted.fitted_people(np.array(labels))
            assert group.panel.weights.tolist() == [weight_of[label] for label in labels]


@pytest.mark.parametrize("shape", ["one giant panel", "one giant set"])
def test_masks_of_situations_with_sets_of_any_size(shape):
    """Gradients through half of the situations; whole people and sets of two to many alternatives in one piece."""
    method = SVI(sbp=0.5, n_samples=10, training=Training(steps=5, batch_size=20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        est = MixedLogit(random=NAMES, method=method, random_state=0).fit(ragged(shape))
    assert np.isfinite(est.coef_).all()


def test_the_published_network_serves_panels_of_any_shape():
    """Mini-batches may lack the largest choice sets of the data; larger ones than these are refused."""
    method = SVI.rodrigues2022(steps=12, batch_size=8, n_samples=10)
    est = MixedLogit(random=NAMES, method=method, random_state=0)
    data = ragged("one giant set")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        est.fit(data)
    assert np.isfinite(est.coef_).all()
    assert np.isfinite(est.individual_coefficients(ragged("singles"))).all(axis=None)
    with torch.random.fork_rng(devices=[]):
        network = PublishedEncoder(3, 2 * 4)
    population = PopulationParameters(torch.zeros(0), torch.zeros(3), torch.eye(3))
    with pytest.raises(SpecificationError, match="up to 3 alternatives, as in the data of the fit; got 150"):
        network(population, difference_panels(data, [0, 1, 2], torch.float32).dense())
