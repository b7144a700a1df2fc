r"""Tastes restricted to one sign whose attribute has an effect of the other: the likelihood is best without it.

The likelihood is highest with the taste of such a column at zero for all people, on the boundary of its families: the
location of a lognormal diverges to minus infinity, and so do engines. So restricted columns are tested before a fit,
where a multinomial logit leaves any doubt: with the model fitted without the column, does the likelihood rise towards
tastes of the allowed sign, and is there a distribution of such tastes that raises it? For a mixture :math:`F` of tastes
and person n's likelihood :math:`p_n(\beta)`, all else at its optimum without the column, the gain is
:math:`\sum_n w_n \log \int p_n(\beta) / p_n(0) \, dF(\beta)`.
"""

from __future__ import annotations

import math
import os
import time
from copy import copy
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from mxlogit.diagnostics.record import Diagnostics
from mxlogit.draws.simulation import PersonDraws
from mxlogit.errors import SpecificationError
from mxlogit.execution.people import People
from mxlogit.fit import Fit, Samples, Status, TasteSampler
from mxlogit.inference.clock import Clock
from mxlogit.inference.method import Callback, Method
from mxlogit.inference.msle.covariance import information_criteria
from mxlogit.inference.msle.engine import MSLE
from mxlogit.inference.start import (
    MultinomialLogit,
    fit_multinomial_logit,
    held_in_logit,
    in_wtp_space,
    prior_of_logit,
    start_population,
)
from mxlogit.inference.vi.newton import NewtonSearch, NewtonSettings
from mxlogit.inference.without_columns import Reduction, refuse_shifts, without_effects
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tastes import ConditionalTastes, ImportanceTastes
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Family
from mxlogit.model.parameters import ParameterSpace, PopulationParameters

# A coefficient of the allowed sign that is this many standard errors from zero needs no further question.
_CERTAIN = 3.0
# Gain in log likelihood that two parameters have by chance: half the 95 % quantile of chi-square with two degrees.
_CHANCE = 3.0
# Tastes at which people's likelihoods are taken, in utils for an attribute's typical difference; zero comes first.
_SMALLEST = 1e-3
_LARGEST = 30.0
_TASTES = 24
# Distributions tried: typical tastes in the same unit; spreads of logarithms (and of logits, for Johnson's S_B);
# locations of truncated and censored normals in units of their scales; quantiles of each.
_TYPICAL = torch.logspace(-3.0, 1.0, 17, dtype=torch.float64)
_SPREADS = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
_RATIOS = torch.tensor([-6.0, -3.0, -1.5, -0.5, 0.0, 0.5, 1.5, 3.0, 8.0], dtype=torch.float64)
_QUANTILES = 64
# Of e, in double precision, with room for a sum.
_LARGEST_EXPONENT = 700.0
_INTEGRATION = IntegrationSettings(draws=64, degrees_of_freedom=8, stream=1, newton_steps=30)
_SEARCH = NewtonSettings(tolerance=0.005, max_iterations=60, draws=64, degrees_of_freedom=8, newton_steps=8)
# Samples of a model that is left without parameters.
_FEW_SAMPLES = 100
_OTHERS = {"lognormal": "'negative_lognormal'", "negative_lognormal": "'lognormal'"}


def run_signed(
    method: Method, model: MixedLogitModel, people: People, *, generator: torch.Generator, callback: Callback
) -> Fit:
    """Fit a model; columns whose effect has not the sign that their distribution allows are left at zero.

    Parameters
    ----------
    method : Method
    model : MixedLogitModel
    people : People
    generator : torch.Generator
    callback : callable

    Returns
    -------
    Fit
        Fit of the whole model; with a warning for every such column, its errors void, and not converged.

    Raises
    ------
    SpecificationError
        If the scale column of willingness-to-pay space has the wrong sign.
    """
    if model.has_classes:
        # A class whose taste has the other sign is one at zero, which the search finds.
        return method.run(model, people, generator=generator, callback=callback)
    started = time.perf_counter()
    signs = determine_signs(model, people, callback)
    refuse_shifts(model, signs.wrong)
    first = _with_seconds_left(method, people.team.gather(time.perf_counter() - started)[0])
    fit = _fit_without(first, model, signs.wrong, people, generator, callback)
    no_gain = fit.diagnostics.log_likelihood <= signs.log_likelihood + _CHANCE
    second = _for_second_run(method, people.team.gather(time.perf_counter() - started)[0])
    if signs.contrary and no_gain and second is not None and model.mixing.shifts is None:
        # The engine has not found the distribution that gains, but the boundary.
        wrong = tuple(sorted((*signs.wrong, *signs.contrary)))
        fit = _fit_without(second, model, wrong, people, generator, callback)
    elif signs.contrary:
        fit = replace(fit, warnings=[*fit.warnings, *(_contrary_sentence(model, i) for i in signs.contrary)])
    return replace(fit, diagnostics=replace(fit.diagnostics, seconds=time.perf_counter() - started))


def _for_second_run(method: Method, spent: float) -> Method | None:
    """The method with the seconds that are left, and a checkpoint file of its own; None if the time is over.

    What the first run would resume is another fit.
    """
    path, limit = getattr(method, "checkpoint", None), getattr(method, "max_seconds", None)
    if limit is not None and spent > _MOST_OF_THE_LIMIT * limit:
        return None
    other = _with_seconds_left(method, spent)
    if path is not None:
        other.checkpoint = f"{os.fspath(path)}.second"  # type: ignore[attr-defined]
    return other


def _with_seconds_left(method: Method, spent: float) -> Method:
    """A copy of the method whose time limit, if any, is what is left of it; the engine refuses a limit that is none."""
    other, limit = copy(method), getattr(method, "max_seconds", None)
    if isinstance(limit, Real) and not isinstance(limit, bool) and float(limit) > 0.0:
        other.max_seconds = max(_FEWEST_SECONDS, float(limit) - spent)  # type: ignore[attr-defined]
    return other


def _fit_without(
    method: Method,
    model: MixedLogitModel,
    wrong: tuple[int, ...],
    people: People,
    generator: torch.Generator,
    callback: Callback,
) -> Fit:
    """The fit of the whole model whose columns of the wrong sign, if any, are held at zero."""
    if not wrong:
        return method.run(model, people, generator=generator, callback=callback)
    reduction = Reduction(model, wrong)
    if reduction.columns:
        part = method.run(reduction.model, reduction.people(people), generator=generator, callback=callback)
    else:
        part = _fit_without_coefficients(reduction, people, method)
    fit, status = reduction.embed_fit(part), Status.WRONG_SIGN
    names = [reduction.full.space.random[i] for i in reduction.dropped]
    sentences = [status.value, *(_sentence(reduction.full, i) for i in reduction.dropped), *part.warnings]
    return replace(fit, status=status, diagnostics=replace(fit.diagnostics, wrong_sign=names), warnings=sentences)


def _sentence(model: MixedLogitModel, i: int) -> str:
    name, family = model.space.random[i], model.mixing.families[i]
    sign = "positive" if family.sign > 0 else "negative"
    other = _OTHERS.get(family.name, f"'negative_lognormal', or minus the column under {family.name!r}")
    spread = "" if family.units == "linear" else f" of latent standard deviations up to {float(_SPREADS.max()):.0f}"
    return (
        f"The effect of {name!r} has the other sign: with the {sign} tastes of {family.name!r}{spread} the likelihood "
        "is as good without the column, at the boundary where its taste is zero for all people. It is held there and "
        f"its errors are void; use {other}."
    )


def _contrary_sentence(model: MixedLogitModel, i: int) -> str:
    name, family = model.space.random[i], model.mixing.families[i]
    return (
        f"A small effect of {name!r} of the sign of {family.name!r}, the same for all people, lowers the likelihood: "
        "on average the effect has the other sign. 'normal' lets people have either."
    )


# Share of a time limit after which no second run begins.
_MOST_OF_THE_LIMIT = 0.7
# Time limit, in seconds, of a run for which none is left: it ends where it begins, and says so.
_FEWEST_SECONDS = 1e-3


@dataclass(frozen=True)
class Signs:
    """Verdicts of the likelihood on sign-restricted coefficients, by their places.

    Attributes
    ----------
    wrong : tuple of int
        Without these it is as good.
    contrary : tuple of int
        A small taste of the allowed sign lowers it, but some distribution of such tastes raises it.
    log_likelihood : float
        Without any of either.
    """

    wrong: tuple[int, ...] = ()
    contrary: tuple[int, ...] = ()
    log_likelihood: float = -math.inf


def determine_signs(model: MixedLogitModel, people: People, callback: Callback) -> Signs:
    """Ask the likelihood about sign-restricted coefficients that a multinomial logit leaves in doubt."""
    if not any(family.sign for family in model.mixing.families):
        return Signs()
    model = without_effects(model)
    found = fit_multinomial_logit(people, prior_of_logit(model), held=held_in_logit(model))
    model, logit = in_wtp_space(model, found)
    doubtful = _doubtful(model, logit)
    signs, contrary = Signs(), set[int]()
    while doubtful:
        callback(f"sign of {[model.space.random[i] for i in doubtful]}")
        signs = _SignTest(model, people, logit, doubtful).classify()
        contrary.update(signs.contrary)
        if signs.wrong == doubtful or not signs.wrong:
            break
        # What one column leaves to explain depends on which others are there.
        doubtful = signs.wrong
    if contrary > set(signs.contrary):
        without = tuple(sorted(contrary.union(signs.wrong)))
        value = _SignTest(model, people, logit, without).log_likelihood()
        return Signs(signs.wrong, tuple(sorted(contrary)), value)
    return signs


def _doubtful(model: MixedLogitModel, logit: MultinomialLogit) -> tuple[int, ...]:
    """Places of restricted coefficients that a multinomial logit does not show to have their sign.

    Raises
    ------
    SpecificationError
        If the scale column of willingness-to-pay space clearly has not.
    """
    n_fixed, position = model.space.n_fixed, model.mixing.scale_position
    deviation = torch.linalg.pinv(logit.information, hermitian=True).diagonal().clamp(min=0.0).sqrt()
    found = []
    for i, family in enumerate(model.mixing.families):
        # The information is that of utils: in money only the sign is known.
        enough = _CERTAIN * deviation[n_fixed + i] if position is None else 0.0
        if family.sign and not family.sign * logit.coefficients[n_fixed + i] > enough:
            found.append(i)
    if position is not None and position - n_fixed in found:
        name = model.space.random[position - n_fixed]
        raise SpecificationError(
            f"the effect of the scale column {name!r} has not the sign of "
            f"{model.mixing.families[position - n_fixed].name!r}: nothing can be valued in its units. Give it a "
            "distribution of the other sign."
        )
    return tuple(found)


@dataclass(frozen=True)
class _SignTest:
    """Gain of the likelihood from doubtful columns, given its optimum without them."""

    model: MixedLogitModel
    people: People
    logit: MultinomialLogit
    doubtful: tuple[int, ...]

    def classify(self) -> Signs:
        """Classify the doubtful columns as wrong, contrary or neither."""
        reduction = Reduction(self.model, self.doubtful)
        population, value = self._optimum(reduction)
        probes = {i: _Probe(reduction, self.people, population, i) for i in self.doubtful}
        signs = {i: self.model.mixing.families[i].sign for i in self.doubtful}
        against = [i for i in self.doubtful if signs[i] * probes[i].slope() <= 0.0]
        gaining = [i for i in against if self._gain(probes[i], i) > _CHANCE]
        return Signs(tuple(i for i in against if i not in gaining), tuple(gaining), value)

    def log_likelihood(self) -> float:
        """Its maximum without the doubtful columns."""
        return self._optimum(Reduction(self.model, self.doubtful))[1]

    def _optimum(self, reduction: Reduction) -> tuple[PopulationParameters, float]:
        """Maximum of the likelihood without the doubtful columns: its population and its logarithm."""
        part, columns = reduction.model, reduction.columns
        logit = replace(
            self.logit,
            coefficients=self.logit.coefficients[columns],
            information=self.logit.information[columns][:, columns],
        )
        population = start_population(part, logit)
        marginal = MarginalLikelihood(reduction.people(self.people), part.space, part.mixing, 0)
        if part.space.size > 0:
            search = NewtonSearch(part, marginal, marginal, _SEARCH, Clock(lambda line: None))
            population = search.run(population).population
        return population, marginal.value_pass(population, _INTEGRATION).log_likelihood

    def _gain(self, probe: _Probe, i: int) -> float:
        """Largest gain of distributions of tastes of the allowed sign."""
        family = self.model.mixing.families[i]
        unit = 1.0 / float(self.model.attribute_scale[self.model.space.n_fixed + i])
        ends = math.log10(_SMALLEST), math.log10(_LARGEST)
        tastes = unit * torch.cat([torch.zeros(1), torch.logspace(*ends, _TASTES)]).double()
        log_prob = torch.stack([probe.log_prob_people(family.sign * taste) for taste in tastes.tolist()], 1)
        return best_gain(self.people, log_prob - log_prob[:, :1], tastes, _members(family, unit))


class _Probe:
    """The likelihood of a model without some columns, one of which has the same coefficient for all people instead."""

    def __init__(self, reduction: Reduction, people: People, population: PopulationParameters, i: int) -> None:
        full, part = reduction.full.space, reduction.model.space
        columns = [*range(full.n_fixed), full.n_fixed + i, *reduction.columns[full.n_fixed :]]
        space = ParameterSpace((*part.fixed, full.random[i]), part.random, part.blocks)
        self.population, self.place = population, part.n_fixed
        self.marginal = MarginalLikelihood(reduction.people(people, columns), space, reduction.mixing(columns), 0)

    def _at(self, coefficient: float) -> PopulationParameters:
        fixed = torch.cat([self.population.fixed, self.population.fixed.new_tensor([coefficient])])
        return replace(self.population, fixed=fixed)

    def slope(self) -> float:
        """Derivative of the log likelihood by the coefficient at zero."""
        return float(self.marginal.score_pass(self._at(0.0), _INTEGRATION).score[self.place])

    def log_prob_people(self, coefficient: float) -> Tensor:
        """Log likelihoods (n,) of the people of this process."""
        population = self._at(coefficient)
        return self.marginal.log_prob_people(population, self.marginal.propose(population, _INTEGRATION))


def best_gain(people: People, log_ratios: Tensor, tastes: Tensor, members: Tensor) -> float:
    """Largest gain in log likelihood of distributions of tastes over no taste.

    Parameters
    ----------
    people : People
    log_ratios : Tensor, shape (n, g)
        Logarithm of each person's likelihood at a taste, relative to that without one.
    tastes : Tensor, shape (g,)
        Increasing, the first one zero; likelihoods are linear in between and constant beyond.
    members : Tensor, shape (m, q)
        Absolute tastes at the quantiles of each distribution.
    """
    after = torch.searchsorted(tastes, members.clamp(max=float(tastes[-1])).contiguous()).clamp(1, len(tastes) - 1)
    share = ((members - tastes[after - 1]) / (tastes[after] - tastes[after - 1])).clamp(0.0, 1.0)
    weights = members.new_zeros(len(members), len(tastes))
    weights.scatter_add_(1, after, share).scatter_add_(1, after - 1, 1.0 - share)
    weights = (weights / members.shape[1]).T.to(log_ratios)
    of_people = people.panels.weights.double()
    # Ratios of people with a thousand choices overflow.
    ratios, large = log_ratios.exp(), log_ratios.amax(1) > _LARGEST_EXPONENT
    totals = []
    for member in weights.T:
        gain = (ratios @ member).log()
        gain[large] = (log_ratios[large] + member.log()).logsumexp(1)
        totals.append(of_people @ gain)
    (total,) = people.team.all_reduce_sum(torch.stack(totals))
    return float(total.max())


def _members(family: Family, unit: float) -> Tensor:
    """Absolute tastes (m, q) at the quantiles of members of a family."""
    z = torch.special.ndtri((torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES)
    if family.units == "linear":
        scale = (unit * _TYPICAL).repeat_interleave(len(_RATIOS))
        location = scale * _RATIOS.repeat(len(_TYPICAL))
    else:
        location = (unit * _TYPICAL).log().repeat_interleave(len(_SPREADS))
        scale = _SPREADS.repeat(len(_TYPICAL))
    location, scale = location[:, None], scale[:, None]
    return family.map(location + scale * z, location.expand(-1, _QUANTILES), scale.expand(-1, _QUANTILES)).taste.abs()


def _fit_without_coefficients(reduction: Reduction, people: People, method: Method) -> Fit:
    """The fit of a model without parameters: equal probabilities."""
    model, part = reduction.model, reduction.people(people)
    population = start_population(model, _empty_logit())
    samples = torch.zeros(_FEW_SAMPLES, 0, dtype=torch.float64)
    marginal = MarginalLikelihood(part, model.space, model.mixing, 0)
    value = marginal.value_pass(population, IntegrationSettings(draws=4, stream=1, newton_steps=0)).log_likelihood
    estimator = isinstance(method, MSLE)
    kind = "sampling distribution" if estimator else "posterior"
    found = Diagnostics(log_likelihood=value, log_likelihood_error=0.0, ess=1.0, passes=1.0)
    tastes: TasteSampler = ImportanceTastes(model, 0, None)
    if estimator:
        found = replace(
            found.join(information_criteria(value, 0, part.require_single_process())), simulated_log_likelihood=value
        )
        tastes = ConditionalTastes(model, PersonDraws("halton", 1, 0, 0), torch.zeros(0, dtype=torch.float64))
    return Fit(
        Samples(samples, samples, (), kind),
        population,
        Status.CONVERGED,
        tastes,
        found,
        covariance=torch.zeros(0, 0, dtype=torch.float64) if estimator else None,
    )


def _empty_logit() -> MultinomialLogit:
    nothing = torch.zeros(0, dtype=torch.float64)
    return MultinomialLogit(nothing, 0.0, nothing[:, None].expand(0, 0))
