"""R-hat and effective sample sizes against arviz."""

import json

import numpy as np
import pytest
import torch

from mxlogit import SpecificationError
from mxlogit.diagnostics.convergence import ess_bulk, ess_tail, mcse_mean, rhat

MEASURES = {"rhat": rhat, "ess_bulk": ess_bulk, "ess_tail": ess_tail, "mcse_mean": mcse_mean}


def chains(phi, shift, seed, exponential, count=4, draws=501):
    """Autoregressive chains, `shift` apart."""
    noise = np.random.default_rng(seed).standard_normal((count, draws))
    values = np.zeros((count, draws))
    values[:, 0] = noise[:, 0] / np.sqrt(1.0 - phi**2)
    for t in range(1, draws):
        values[:, t] = phi * values[:, t - 1] + noise[:, t]
    values += shift * np.arange(count)[:, None]
    return np.exp(values / 4.0) if exponential else values


def cases(reference):
    return json.loads((reference / "arviz_convergence.json").read_text())["cases"]


@pytest.mark.parametrize("measure", list(MEASURES))
def test_equal_to_published_values_of_arviz(reference, measure):
    """Independent, sticky, antithetic chains and chains apart, of odd length."""
    known = cases(reference).values()
    values = [chains(case["phi"], case["shift"], case["seed"], case["exponential"]) for case in known]
    found = MEASURES[measure](torch.from_numpy(np.stack(values, -1)))
    np.testing.assert_allclose(found, [case[measure] for case in known], rtol=1e-9)


def test_equal_to_arviz():
    import arviz

    values = chains(0.7, 0.1, 8, exponential=False, draws=400)
    tensor = torch.from_numpy(values)[..., None]
    assert float(rhat(tensor)) == pytest.approx(float(arviz.rhat(values)), rel=1e-6)
    assert float(ess_bulk(tensor)) == pytest.approx(float(arviz.ess(values, method="bulk")), rel=1e-6)
    assert float(ess_tail(tensor)) == pytest.approx(float(arviz.ess(values, method="tail")), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1000), (4, 3)])
@pytest.mark.parametrize("measure", list(MEASURES))
def test_too_little_is_refused(shape, measure):
    with pytest.raises(SpecificationError, match="at least 2 chains of 4 samples"):
        MEASURES[measure](torch.zeros(*shape, 2))


def test_a_constant_has_no_rhat():
    values = torch.randn(4, 50, 2, generator=torch.Generator().manual_seed(1))
    values[..., 1] = 3.0
    assert torch.isnan(rhat(values)[1])
    assert float(rhat(values)[0]) < 1.2
