"""The same numbers in chunks of another size, in single precision and on a GPU, from the same draws."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mxlogit import MSLE, SVI, VI, MixedLogit, Training, memory_report, pack_choices
from mxlogit.draws.importance import DrawScheme
from mxlogit.draws.simulation import PersonDraws
from mxlogit.execution.people import People
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import Encoder, SetEncoder
from mxlogit.guide.flows import LocalFlow
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.svi.guide_objective import GuideObjective, ObjectiveSettings
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.simulated_likelihood import SimulatedLikelihood
from mxlogit.integration.tastes import ImportanceTastes
from mxlogit.simulate import simulate_choices, simulate_published_study

pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
NAMES = {"fixed": ["f1", "f2", "f3"], "random": ["r1", "r2", "r3", "r4", "r5"]}
FAMILIES = ["lognormal", "truncated_normal", "censored_normal", "uniform", "triangular", "johnson_sb", "normal"]
# Rounding: of a few hundred sums in double precision, and in single precision (relative 6e-8) of log probabilities,
# of which polish settles a mode to 1e-4 nats only.
EXACT, SINGLE = 1e-9, 1e-5

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
OTHERS = [
    pytest.param("cpu", torch.float64, id="other chunks"),
    pytest.param("cpu", torch.float32, id="single precision"),
    pytest.param("cuda", torch.float64, id="gpu", marks=needs_gpu),
    pytest.param("cuda", torch.float32, id="gpu in single precision", marks=needs_gpu),
]


@pytest.fixture(autouse=True)
def draws_of_the_processor(monkeypatch):
    """Base points made in double precision on the processor, wherever they are used."""
    make = DrawScheme.points

    def points(scheme, first, count, like):
        made = make(scheme, first, count, torch.empty(0, dtype=torch.float64))
        return type(made)(made.points.to(like), made.n_prior, made.degrees_of_freedom)

    monkeypatch.setattr(DrawScheme, "points", points)


@pytest.fixture(scope="module")
def fitted():
    """Model, people and a population of all families, two of them correlated."""
    random = {f"z{i}": (0.3, 0.6, family) for i, family in enumerate(FAMILIES)}
    frame, _ = simulate_choices(90, (1, 6), 4, fixed={"x": 0.5}, random=random, unavailable=0.2, random_state=1)
    est = MixedLogit(
        fixed=["x"],
        random={name: family for name, (_, _, family) in random.items()},
        correlated=[["z0", "z6"]],
        method=MSLE(n_draws=10, max_iterations=1, n_starts=1, check_draws=False),
        random_state=1,
    )
    return est.fit(frame)._fitted


def on(panel, device, dtype):
    parts = {part.name: getattr(panel, part.name) for part in fields(panel) if part.init}
    moved = {name: part.to(device) for name, part in parts.items() if isinstance(part, torch.Tensor)}
    return replace(panel, **moved).to(dtype)


def assert_equal(found, wanted, dtype):
    """Numbers within rounding, as shares of the largest of their kind."""
    tolerance = EXACT if dtype == torch.float64 else SINGLE
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = float(value.abs().amax())
        torch.testing.assert_close(
            found[name].cpu().double(),
            value.cpu().double(),
            atol=tolerance * scale,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def integrals(model, panel):
    """All that a pass adds up, and every person's tastes."""
    population = model.space.constrain(torch.linspace(-0.4, 0.4, model.space.size, dtype=torch.float64))
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, 3)
    integration = IntegrationSettings(32, 8, 1, 30, newton_tolerance=1e-12)
    result = marginal.score_pass(population, integration)
    each = marginal.log_prob_people(population, marginal.propose(population, integration))
    mean, deviation = ImportanceTastes(model, 3, 8).moments(panel, population)
    return {
        "log likelihood": torch.tensor(result.value.log_likelihood),
        "people": each,
        "score": result.score,
        "outer products": result.outer,
        "means of tastes": mean,
        "sds of tastes": deviation,
    }


def simulated(model, panel):
    likelihood = SimulatedLikelihood(model, panel, PersonDraws("halton", 40, model.space.n_random, 0))
    vector = torch.linspace(-0.5, 0.7, likelihood.size, dtype=torch.float64)
    found = likelihood.evaluate(vector)
    return {"people": found.log_prob, "scores": found.scores}


def bound(model, panel):
    """Value and gradient of a guide with an encoder and a flow, all weights random."""
    size = model.space.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        start = GaussianFactor(torch.zeros(size).double(), 0.2 * torch.eye(size).double())
        encoder = SetEncoder(model.space.n_random, model.mixing, Encoder(width=8)).double()
        guide = AmortizedGuide(model, start, encoder, 0, LocalFlow(model.space.n_random, "spline", 1, width=8).double())
        for name, parameter in guide.named_parameters():
            if "." in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    for network in (guide.encoder, guide.flow):
        network.to(panel.values)
    objective = GuideObjective(guide, panel, ObjectiveSettings("iwae", 8, 4, 50), 1)
    smooth = objective.freeze(2, objective.vector())
    value, gradient = smooth.gradient(objective.vector())
    return {"bound": torch.tensor(value), "gradient": gradient}


@pytest.mark.parametrize("numbers", [integrals, simulated, bound], ids=lambda function: function.__name__)
@pytest.mark.parametrize(("device", "dtype"), OTHERS)
def test_numbers_do_not_depend_on_chunks_precision_or_device(fitted, monkeypatch, device, dtype, numbers):
    wanted = numbers(fitted.model, on(fitted.panel, "cpu", torch.float64))
    monkeypatch.setattr("mxlogit.choices.chunks._MOST_PEOPLE", {"cpu": 7, "cuda": 7})
    monkeypatch.setattr("mxlogit.choices.chunks._CELLS", {"cpu": 8_000, "cuda": 8_000})
    found = numbers(fitted.model, on(fitted.panel, device, dtype))
    assert_equal(found, wanted, dtype)


# Searches of a fit branch where rounding does: a hundredth of a posterior sd.
FAR = 0.01
METHODS = {"vi": VI(n_samples=30, correct=False), "msle": MSLE(n_draws=100)}


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize(("device", "dtype"), OTHERS[1:])
def test_fits_do_not_depend_on_precision_or_device(device, dtype, name):
    data = simulate_published_study(300, 5, 1).data
    settings = {"random_state": 1, "method": METHODS[name], **NAMES}
    here = MixedLogit(device="cpu", dtype="float64", **settings).fit(data)
    there = MixedLogit(device=device, dtype=dtype, **settings).fit(data)
    assert there._fitted.panel.like.device.type == device
    sd = here.summary()["std_error"]
    assert ((there.coef_ - here.coef_) / sd).abs().max() < FAR
    np.testing.assert_allclose(there.summary()["std_error"] / sd, 1.0, atol=FAR)
    assert there.log_likelihood_ == pytest.approx(here.log_likelihood_, abs=0.05)
    means = [est.individual_coefficients().xs("mean", axis=1, level=1) for est in (here, there)]
    assert float((means[0] - means[1]).abs().max().max()) < 0.02
    assert there.score(data) == pytest.approx(here.score(data), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_shards_and_checkpoint(tmp_path):
    data = simulate_published_study(3_000, 5, 1).data
    packed = pack_choices(data, tmp_path / "pack")
    method = VI(checkpoint=tmp_path / "fit.checkpoint")
    here = MixedLogit(device="cuda", random_state=1, **NAMES).fit(data)
    there = MixedLogit(device="cuda", random_state=1, method=method, **NAMES).fit(packed)
    np.testing.assert_allclose(there.coef_, here.coef_, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_report_by_peak_allocation():
    """Fewer situations kept, a lower peak."""
    frame, _ = simulate_choices(256, 128, 4, fixed={"x": 0.5}, random={"z": (0.5, 1.0)}, random_state=1)
    method = SVI(polish=0, flow=None, sbp=0.25, training=Training(steps=100))
    est = MixedLogit(fixed=["x"], random=["z"], device="cuda", dtype="float32", random_state=1, method=method)
    table = memory_report(est, frame)
    assert table["encoder"].iloc[:4].is_monotonic_decreasing
    assert table.loc["keep 0.25", "encoder"] < 0.5 * table.loc["everything recorded", "encoder"]
    assert est.fit(frame)._fitted.panel.like.is_cuda
