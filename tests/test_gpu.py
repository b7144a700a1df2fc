"""The same results on a GPU, within single precision; skipped where there is none."""

import numpy as np
import pytest
import torch

from mxlogit import MSLE, VI, ChoiceData, MixedLogit, memory_report
from mxlogit.simulate import simulate_choices, simulate_published_study

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning"),
]
NAMES = {"fixed": ["f1", "f2", "f3"], "random": ["r1", "r2", "r3", "r4", "r5"]}


def compare(here, there, width, spread=0.15):
    """Other generators give other draws: estimates agree within a share of a posterior sd, by root mean square."""
    sd = here.summary()["std_error"]
    distances = (here.coef_ - there.coef_) / sd
    assert (distances**2).mean() ** 0.5 < width
    assert distances.abs().max() < 3.0 * width
    np.testing.assert_allclose(there.summary()["std_error"] / sd, 1.0, atol=spread)


@pytest.mark.parametrize("n", [2_000, 30_000])
def test_variational_inference(n):
    """Beyond 20,000 people the noise of 16 draws is a third of a posterior sd, here and there."""
    data = simulate_published_study(n, 10, 1).data
    here = MixedLogit(device="cpu", random_state=1, **NAMES).fit(data)
    there = MixedLogit(device="auto", random_state=1, **NAMES).fit(data)
    assert there._fitted.panel.like.is_cuda
    compare(here, there, 0.2 if n == 2_000 else 0.4)
    here, there = here.individual_coefficients(), there.individual_coefficients()
    assert (here.xs("mean", axis=1, level=1) - there.xs("mean", axis=1, level=1)).abs().mean().max() < 0.05


def test_all_mixing_distributions_and_predictions():
    families = ["lognormal", "truncated_normal", "censored_normal", "uniform", "triangular", "johnson_sb"]
    random = {f"z{i}": (0.3, 0.6, family) for i, family in enumerate(families)}
    frame, _ = simulate_choices(500, 8, 3, random=random, unavailable=0.2, random_state=1)
    request = {"random": {z: family for z, (_, _, family) in random.items()}, "correlated": False, "random_state": 1}
    here, there = (MixedLogit(device=device, **request).fit(frame) for device in ("cpu", "cuda"))
    compare(here, there, 0.5)
    assert (here.predict_proba(frame) - there.predict_proba(frame)).abs().max() < 0.05
    assert there.score(frame) == pytest.approx(here.score(frame), abs=5e-3)


def test_shards_and_checkpoint(tmp_path):
    data = simulate_published_study(3_000, 5, 1).data
    packed = ChoiceData.pack(data, tmp_path / "pack")
    method = VI(checkpoint=tmp_path / "fit.checkpoint")
    here = MixedLogit(device="cuda", random_state=1, **NAMES).fit(data)
    there = MixedLogit(device="cuda", random_state=1, method=method, **NAMES).fit(packed)
    np.testing.assert_allclose(there.coef_, here.coef_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [MSLE(n_draws=100), VI(population="adam", steps=100)])
def test_other_engines(method):
    data = simulate_published_study(500, 5, 1).data
    here, there = (
        MixedLogit(device=device, dtype="float32", random_state=1, method=method, **NAMES).fit(data)
        for device in ("cpu", "cuda")
    )
    # A hundred steps of Adam have not ended: spreads are still on their way.
    compare(here, there, *((0.3,) if isinstance(method, MSLE) else (1.0, 0.5)))


def test_memory_report_by_peak_allocation():
    """Fewer situations kept, a lower peak; and training through masks comes to the estimates of the CPU."""
    frame, _ = simulate_choices(256, 128, 4, fixed={"x": 0.5}, random={"z": (0.5, 1.0)}, random_state=1)
    method = VI(population="adam", steps=100, sbp=0.25)
    here, there = (
        MixedLogit(fixed=["x"], random=["z"], device=device, dtype="float32", random_state=1, method=method)
        for device in ("cpu", "cuda")
    )
    table = memory_report(there, frame)
    assert table["encoder"].iloc[:4].is_monotonic_decreasing
    assert table.loc["keep 0.25", "encoder"] < 0.5 * table.loc["everything recorded", "encoder"]
    compare(here.fit(frame), there.fit(frame), 0.5, 0.5)
