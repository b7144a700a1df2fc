"""NumPyro's No-U-Turn sampler on the same density, written in JAX: a reference that shares no code with the others.

It needs the extra ``nuts``. Sites have the names of the Pyro program (`mxlogit.model.pyro_program`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mxlogit.choices.chunks import cells_at_once
from mxlogit.draws.generators import make_generator
from mxlogit.errors import MissingExtraError, SpecificationError
from mxlogit.fit import HistoryRow
from mxlogit.inference.clock import Clock
from mxlogit.inference.mcmc.gibbs_run import FEWEST_KEPT, ChainSettings, Sampled
from mxlogit.inference.mcmc.pyro_nuts import chain_after_chain, is_over_for, site_values
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters

# Sd of the initial states around the start, in relative coordinates; chosen by hand.
_START_SPREAD = 0.2
# Target acceptance probability; chosen by hand.
_TARGET_ACCEPTANCE = 0.85
# Number of blocks of a chain, between which progress is reported and the time limit checked; chosen by hand.
_BLOCKS = 10
# Utility of unavailable alternatives: finite, because minus infinity would give nan derivatives at padding.
_NEVER = -1e30
# Sign of the exponential of each family; zero: normal.
_SIGNS = {"normal": 0.0, "lognormal": 1.0, "negative_lognormal": -1.0}


def check_numpyro(model: MixedLogitModel) -> None:
    """Raise unless NumPyro is installed and the model's families are implemented for it.

    Raises
    ------
    MissingExtraError
        If NumPyro is not installed.
    SpecificationError
        If a family is not implemented.
    """
    if model.mixing.shifts is not None or model.mixing.varying is not None:
        raise SpecificationError(
            "MCMC(sampler='numpyro') knows neither covariates of tastes other than normal ones nor within=... Use "
            "sampler='gibbs' or 'nuts'."
        )
    # Importing NumPyro draws once from NumPy's global generator.
    before = np.random.get_state()
    try:
        import numpyro.infer  # noqa: F401
    except ImportError:
        raise MissingExtraError("MCMC(sampler='numpyro') needs NumPyro: pip install 'mxlogit[nuts]'.") from None
    finally:
        np.random.set_state(before)
    others = sorted({family.name for family in model.mixing.families} - set(_SIGNS))
    if others:
        raise SpecificationError(
            f"MCMC(sampler='numpyro') knows the mixing distributions {list(_SIGNS)}; not {others}. Use sampler='nuts'."
        )


def run_numpyro(
    settings: ChainSettings,
    model: MixedLogitModel,
    panel: Panels,
    start: PopulationParameters,
    seed: int,
    clock: Clock,
) -> Sampled:
    """Sample chain after chain in double precision; parameters as in `mxlogit.inference.mcmc.gibbs_run.run_gibbs`."""
    check_numpyro(model)
    import jax

    def sample(chain: int) -> tuple[dict[str, Tensor], int]:
        blocks: list[dict[str, np.ndarray]] = []
        divergences = 0
        for stage, block, diverged in _run_chain(settings, model, panel, start, (seed, chain)):
            text = f"chain {chain + 1}, {stage}"
            clock.history.append(HistoryRow(text, float("nan"), float("nan"), float("nan"), clock.seconds(), True))
            clock.show(text)
            blocks += [block] if block else []
            divergences += diverged
            kept = sum(len(next(iter(block.values()))) for block in blocks) // settings.thin
            if kept >= FEWEST_KEPT and is_over_for(chain, settings, clock):
                break
        return _as_tensors(blocks, settings), divergences

    with jax.enable_x64(True):
        return chain_after_chain(settings, model, panel, sample, clock)


def _run_chain(
    settings: ChainSettings, model: MixedLogitModel, panel: Panels, start: PopulationParameters, key: tuple[int, int]
) -> Iterator[tuple[str, dict[str, np.ndarray], int]]:
    """Warm up, then sample in blocks; yields a progress message, samples by site, and the number of divergences."""
    import jax
    from numpyro.infer import MCMC as NumPyroMCMC
    from numpyro.infer import NUTS, init_to_value

    generator = make_generator(*key, 43)
    steps = _START_SPREAD * torch.randn(model.space.size, generator=generator, dtype=torch.float64)
    values = {name: value.numpy() for name, value in site_values(model, model.space.move(start, steps)).items()}
    values["xi"] = np.zeros((len(panel), model.space.n_random))
    kernel = NUTS(
        program(model, len(panel)),
        target_accept_prob=_TARGET_ACCEPTANCE,
        init_strategy=init_to_value(values={name: value for name, value in values.items() if value.size}),
    )
    total = settings.samples * settings.thin
    size = -(-total // _BLOCKS)
    run = NumPyroMCMC(kernel, num_warmup=settings.warmup, num_samples=size, progress_bar=False)
    data = arrays(panel)
    run.warmup(jax.random.PRNGKey(int(torch.randint(2**31, (1,), generator=generator))), data)
    yield "warm-up done", {}, 0
    state = run.last_state
    for first in range(0, total, size):
        run.post_warmup_state = state
        run.run(state.rng_key, data, extra_fields=("diverging",))
        state = run.last_state
        wanted = min(size, total - first)
        block = {name: np.asarray(value)[:wanted] for name, value in run.get_samples().items()}
        diverged = int(np.asarray(run.get_extra_fields()["diverging"])[:wanted].sum())
        yield f"sampling: iteration {first + wanted}", block, diverged


def _as_tensors(blocks: list[dict[str, np.ndarray]], settings: ChainSettings) -> dict[str, Tensor]:
    """Kept iterations by site."""
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {name: torch.tensor(value[settings.thin - 1 :: settings.thin]) for name, value in joined.items()}


def arrays(panel: Panels) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices of people, attribute differences (n, t, J - 1, F + K) and unavailable alternatives, part by part."""
    found = []
    for place, piece in panel.pieces(cells_at_once(0.25), len(panel)):
        people = np.arange(len(panel))[place if isinstance(place, slice) else place.cpu().numpy()]
        parts = zip(piece.by_section(piece.values), piece.by_section(piece.unavailable_rows()), strict=True)
        found += [(people, values.double().cpu().numpy(), unavailable.cpu().numpy()) for values, unavailable in parts]
    return found


def program(model: MixedLogitModel, n_people: int) -> Callable[[Any], None]:
    """The generative model of `mxlogit.model.pyro_program` in NumPyro, as a function of the `arrays`."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    n_fixed, k, prior = model.space.n_fixed, model.space.n_random, model.prior
    mean, deviation = prior.mean.numpy(), prior.deviation.numpy()
    signs = np.array([_SIGNS[family.name] for family in model.mixing.families])

    def sample(name: str, distribution: Any) -> Any:
        """Sample a site; see `mxlogit.model.pyro_program.sample_site`."""
        if 0 in distribution.event_shape:
            return jnp.zeros(distribution.event_shape)
        return numpyro.sample(name, distribution)

    def run(parts: Any) -> None:
        fixed = sample("fixed", dist.Normal(mean[:n_fixed], deviation[:n_fixed]).to_event(1))
        location = sample("location", dist.Normal(mean[n_fixed:], deviation[n_fixed:]).to_event(1))
        scale = sample("scale", dist.HalfCauchy(prior.sd_scale.numpy()).to_event(1))
        factor = jnp.eye(k)
        for i, block in enumerate(model.space.correlated_blocks):
            index = np.asarray(block)
            part = numpyro.sample(f"correlation_{i}", dist.LKJCholesky(len(block), prior.concentration))
            factor = factor.at[index[:, None], index].set(part)
        xi = sample("xi", dist.Normal(jnp.zeros((n_people, k)), 1.0).to_event(2))
        latent = location + xi @ (scale[:, None] * factor).T
        tastes = jnp.where(signs == 0.0, latent, signs * jnp.exp(jnp.where(signs == 0.0, 0.0, latent)))
        total = 0.0
        for people, values, unavailable in parts:
            utility = values[..., :n_fixed] @ fixed + jnp.einsum("ntjk,nk->ntj", values[..., n_fixed:], tastes[people])
            # So low a utility has probability zero, with finite derivatives even if a whole situation is padding.
            utility = jnp.where(unavailable, _NEVER, utility)
            total -= jnp.logaddexp(0.0, jax.nn.logsumexp(utility, -1)).sum()
        numpyro.factor("choices", total)

    return run
