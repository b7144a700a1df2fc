"""Populations of classes: latent class models, their engines and tables, and mixtures of normals."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from mxlogit import (
    MCMC,
    MSLE,
    SVI,
    VI,
    ChoiceDataError,
    MixedLogit,
    Mixture,
    SpecificationError,
    compare_with_mcmc,
    likelihood_ratio_test,
    pack_choices,
    plots,
)
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.classes.labels import of_one_labelling, relabel
from mxlogit.inference.vi.weighted_draws import WeightedVectors
from mxlogit.integration.class_likelihood import ClassLikelihood
from mxlogit.integration.mixture_likelihood import MixtureLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.class_prior import resolve_class_prior
from mxlogit.model.classes import ClassSpace
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import Priors, resolve_priors

pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
TASTES = np.array([[1.5, -1.0], [-1.5, -2.5]])
SHARES = {"constant": -0.4, "z": 0.8}


def simulate(people=400, situations=8, alternatives=3, spread=0.0, seed=0):
    """Two classes; the second is likelier the larger the covariate z."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=people)
    second = rng.random(people) < 1.0 / (1.0 + np.exp(-SHARES["constant"] - SHARES["z"] * z))
    tastes = TASTES[second.astype(int)] + spread * rng.normal(size=(people, 2))
    x = rng.normal(size=(people, situations, alternatives, 2))
    noise = rng.gumbel(size=x.shape[:3])
    chosen = ((x * tastes[:, None, None]).sum(-1) + 0.5 * x[..., 0] * 0.0 + noise).argmax(-1)
    n, t, j = np.indices(x.shape[:3]).reshape(3, -1)
    frame = pd.DataFrame({"id": n, "situation": t, "alternative": j, "choice": j == chosen[n, t]})
    frame[["x", "y"]] = x.reshape(-1, 2)
    return frame.assign(z=z[n], weight=1.0 + n % 2)


def latent(method="vi", **settings):
    settings = {"mixing": Mixture(classes=2, spread=0, membership=["z"]), "random_state": 0, **settings}
    return MixedLogit(random=["x", "y"], method=method, **settings)


@pytest.fixture(scope="module")
def frame():
    return simulate()


@pytest.fixture(scope="module")
def est(frame):
    return latent().fit(frame)


@pytest.fixture(scope="module")
def maximum(frame):
    return latent("msle").fit(frame)


def space(*, ignored=((), (), ()), spread=False):
    return ClassSpace(("a",), ("b", "c"), ((0, 1),), (), 3, ignored, spread, ("z",), (0.7,))


def model(families=("normal", "normal"), **settings):
    layout, mixing = space(**settings), Mixing(families)
    prior = resolve_priors(Priors(standardize=True), mixing, 1, [1.0, 2.0, 0.5])
    prior = resolve_class_prior(prior, torch.tensor([1.3], dtype=torch.float64))
    return MixedLogitModel(layout, mixing, prior, torch.ones(3, dtype=torch.float64))


def panel(n=20):
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(n, 12, 3, generator=rng, dtype=torch.float64)
    weights = torch.rand(n, generator=rng, dtype=torch.float64)
    covariates = torch.randn(n, 1, generator=rng, dtype=torch.float64)
    regular = PanelDifferences.regular(values, 2, weights)
    return PanelDifferences(values, None, regular.sections, weights, regular.n_situations, covariates=covariates)


IGNORED = [((), (), ()), ((), (1,), (0, 1, 2))]


class TestParameters:
    @pytest.mark.parametrize("ignored", IGNORED)
    @pytest.mark.parametrize("spread", [False, True])
    def test_coordinates_are_inverse(self, ignored, spread):
        layout = space(ignored=ignored, spread=spread)
        vectors = torch.randn(5, layout.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        population = layout.constrain(vectors)
        assert torch.allclose(layout.unconstrain(population), vectors, atol=1e-12)
        reported = layout.report(population)
        assert torch.allclose(layout.report(layout.from_report(reported)), reported, atol=1e-12)
        assert len(layout.labels) == layout.size == len(set(layout.labels))

    @pytest.mark.parametrize("ignored", IGNORED)
    @pytest.mark.parametrize("spread", [False, True])
    def test_derivatives_of_the_prior(self, ignored, spread):
        made = model(ignored=ignored, spread=spread)
        vector = torch.randn(made.space.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        slope, hessian = made.prior.derivatives_at(made.space, vector)
        assert torch.allclose(torch.func.grad(made.log_prior)(vector), slope, atol=1e-12)
        assert torch.allclose(torch.func.hessian(made.log_prior)(vector), hessian, atol=1e-12)
        if not spread:
            values, slopes = made.prior.value_and_slope(made.space, torch.stack([vector, 2.0 * vector]))
            assert torch.allclose(slopes[0], slope, atol=1e-12)
            assert torch.allclose(values, made.log_prior(torch.stack([vector, 2.0 * vector])), atol=1e-12)

    def test_the_prior_does_not_know_labels(self):
        made = model()
        vector = torch.randn(made.space.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        moved = made.space.unconstrain(made.space.permuted(made.space.constrain(vector), [2, 0, 1]))
        assert float(made.log_prior(moved)) == pytest.approx(float(made.log_prior(vector)), abs=1e-10)

    def test_shares_at_average_covariates_are_uniform(self):
        made = model()
        grid = torch.linspace(-12.0, 12.0, 401, dtype=torch.float64)
        pairs = torch.cartesian_prod(grid, grid)
        vectors = torch.zeros(len(pairs), made.space.size, dtype=torch.float64)
        vectors[:, -4], vectors[:, -2] = pairs.T
        others = made.log_prior(torch.zeros(1, made.space.size, dtype=torch.float64))
        density = (made.log_prior(vectors) - others).exp()
        first = made.space.constrain(vectors).log_shares().exp()[..., 0]
        at_zero = 2.0 / 27.0  # the density of uniform shares, in logits, where all are a third
        total = float(density.sum() * (grid[1] - grid[0]) ** 2) * at_zero
        assert total == pytest.approx(1.0, abs=1e-3)
        mean = float((density * first[:, 0]).sum() * (grid[1] - grid[0]) ** 2) * at_zero
        assert mean == pytest.approx(1.0 / 3.0, abs=1e-3)


class TestLikelihood:
    @pytest.mark.parametrize("families", [("normal", "normal"), ("normal", "negative_lognormal")])
    @pytest.mark.parametrize("ignored", IGNORED)
    def test_value_score_and_information(self, families, ignored):
        made, people = model(families, ignored=ignored), panel()
        vector = 0.5 * torch.randn(made.space.size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

        def plain(at):
            population = made.space.constrain(at)
            utility = people.values @ population.class_tastes(made.mixing)[:, 0].T
            log_prob = -utility.unflatten(1, (6, 2)).exp().sum(2).log1p().sum(1)
            joint = log_prob + population.log_shares(people.covariates)
            return people.weights @ joint.logsumexp(1)

        likelihood = ClassLikelihood(made, people)
        found = likelihood.evaluate(vector)
        assert found.value == pytest.approx(float(plain(vector)), abs=1e-10)
        assert torch.allclose(torch.func.grad(plain)(vector), found.gradient, atol=1e-10)
        assert torch.allclose(torch.func.hessian(plain)(vector), -found.information, atol=1e-10)
        several = torch.stack([vector, 0.5 * vector])
        values, gradients = likelihood.gradients(several)
        assert torch.allclose(gradients[0], found.gradient, atol=1e-10)
        assert float(values[1]) == pytest.approx(float(plain(several[1])), abs=1e-10)
        log_prob = likelihood.log_prob_people(made.space.constrain(several))
        assert torch.allclose(log_prob @ people.weights, values, atol=1e-10)

    def test_a_narrow_mixture_is_the_latent_class_model(self):
        narrow, exact, people = model(spread=True), model(), panel()
        vector = 0.5 * torch.randn(exact.space.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        population = exact.space.constrain(vector)
        thin = 1e-4 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
        other = type(population)(
            population.fixed, population.location, thin, population.membership, population.attended
        )
        mixture = MixtureLikelihood(narrow, people, 0, IntegrationSettings(16, 8, newton_steps=10))
        want = ClassLikelihood(exact, people).log_prob_people(population)
        assert torch.allclose(mixture.log_prob_people(other), want, atol=1e-3)

    def test_scores_of_a_mixture(self):
        made, people = model(spread=True, ignored=IGNORED[1]), panel()
        vector = 0.3 * torch.randn(made.space.size, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        likelihood = MixtureLikelihood(made, people, 0, IntegrationSettings(8192, 8, newton_steps=30))
        gradient = likelihood.evaluate(vector).gradient
        for i in range(len(vector)):
            step = torch.zeros_like(vector)
            step[i] = 1e-3
            above, below = (
                float(likelihood.log_prob_people(made.space.constrain(vector + sign * step)) @ people.weights)
                for sign in (1.0, -1.0)
            )
            assert float(gradient[i]) == pytest.approx((above - below) / 2e-3, abs=0.03)


def independent_em(frame, classes=2, steps=400):
    """A plain EM algorithm with gradient M-steps, on its own arrays: log likelihood of the latent class model."""
    people = frame["id"].nunique()
    x = torch.from_numpy(frame[["x", "y"]].to_numpy().reshape(people, -1, 3, 2))
    chosen = torch.from_numpy(frame["choice"].to_numpy().reshape(people, -1, 3).argmax(-1))
    tastes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)[:classes].requires_grad_()
    share = torch.full((classes,), 1.0 / classes, dtype=torch.float64)
    for _ in range(steps):
        log_prob = ((x @ tastes.T).log_softmax(2).gather(2, chosen[:, :, None, None].expand(-1, -1, 1, classes))).sum(
            (1, 2)
        )
        joint = log_prob + share.log()
        member = joint.softmax(1).detach()
        share = member.mean(0)
        optimizer = torch.optim.LBFGS([tastes], max_iter=4, line_search_fn="strong_wolfe")

        def closure(member=member, optimizer=optimizer):
            optimizer.zero_grad()
            inside = (x @ tastes.T).log_softmax(2).gather(2, chosen[:, :, None, None].expand(-1, -1, 1, classes))
            loss = -(member * inside.sum((1, 2))).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return float(joint.logsumexp(1).sum().detach()), tastes.detach(), share


class TestEngines:
    def test_maximum_likelihood_is_that_of_an_independent_em(self, frame):
        found = latent("msle", mixing=Mixture(classes=2, spread=0)).fit(frame)
        value, tastes, share = independent_em(frame)
        order = share.argsort(descending=True)
        assert found.log_likelihood_ == pytest.approx(value, abs=1e-4)
        assert np.allclose(found.coef_[:4], tastes[order].flatten(), atol=1e-3)
        assert found.class_tastes().loc[("class1", "share", ""), "estimate"] == pytest.approx(
            float(share.max()), abs=1e-4
        )

    def test_people_who_answer_at_random(self, frame):
        rng = np.random.default_rng(0)
        random = frame["id"] % 4 == 0
        places = rng.integers(3, size=len(frame) // 3).repeat(3)
        mixed = frame.assign(choice=np.where(random, frame["alternative"] == places, frame["choice"]))
        found = latent("msle", mixing=Mixture(classes=3, spread=0, indifferent=True)).fit(mixed)
        assert "class3.x" not in found.coef_
        assert found.summary().loc["class3.share", "estimate"] == pytest.approx(0.25, abs=0.05)
        means = found.class_tastes().xs("class3", level="class").xs("mean", level="statistic")
        assert (means["estimate"] == 0.0).all()
        member = found.class_memberships()["class3"]
        assert member[member.index % 4 == 0].mean() > 0.8

    def test_the_truth_is_inside_four_errors(self, est):
        truth = np.append(TASTES.flatten(), [SHARES["constant"], SHARES["z"]])
        table = est.summary().iloc[:6]
        assert (np.abs(table["estimate"] - truth) < 4.0 * table["std_error"]).all()

    def test_variational_inference_against_chains(self, frame, est):
        chains = latent(MCMC(warmup=100, samples=300)).fit(frame)
        assert chains.diagnostics_["rhat"] < 1.02
        apart = (est.coef_ - chains.coef_) / chains.summary()["std_error"][: len(chains.coef_)]
        assert np.abs(apart).max() < 0.15
        ratio = est.summary()["std_error"] / chains.summary()["std_error"]
        assert np.abs(np.log(ratio)).max() < 0.12

    def test_the_mode_of_a_flat_prior_is_the_maximum(self, frame, maximum):
        apart = maximum.coef_ - latent(priors=Priors(location_scale=100.0)).fit(frame).coef_
        assert (np.abs(apart) < 0.5 * maximum.summary()["std_error"][:6]).all()

    def test_weights_are_counts(self):
        small = simulate(80, 6)
        double = pd.concat([small, small[small["weight"] == 2.0].assign(id=lambda f: f["id"] + 1_000)])
        weighted = latent("msle", weights="weight", weights_sum="given").fit(small)
        repeated = latent("msle").fit(double)
        assert np.allclose(weighted.coef_, repeated.coef_, atol=1e-5)
        assert weighted.log_likelihood_ == pytest.approx(repeated.log_likelihood_, abs=1e-6)

    def test_seeds_repeat_and_starts_agree(self, frame, est):
        again, other = latent().fit(frame), latent(random_state=5).fit(frame)
        assert again.coef_.equals(est.coef_)
        assert np.allclose(other.coef_, est.coef_, atol=0.02)

    def test_classes_are_ordered_by_share(self, est):
        shares = est.class_tastes().xs("share", level="statistic")["estimate"]
        assert shares.is_monotonic_decreasing
        assert shares.sum() == pytest.approx(1.0)

    def test_evidence_and_leave_one_out_find_two_classes(self, frame):
        frame = frame[frame["id"] < 200]
        fits = {c: latent(mixing=Mixture(classes=c, spread=0)).fit(frame) for c in (2, 3)}
        one = MixedLogit(fixed=["x", "y"], random_state=0).fit(frame)
        assert fits[2].loo().elpd > max(one.loo().elpd, fits[3].loo().elpd)
        assert fits[2].diagnostics_["log_evidence"] > fits[3].diagnostics_["log_evidence"]

    def test_an_ignored_attribute_has_no_coefficient(self, frame):
        found = latent("msle", mixing=Mixture(classes=2, spread=0, ignored={2: ["x"]})).fit(frame)
        assert "class2.x" not in found.coef_
        assert found.class_tastes().loc[("class2", "mean", "x"), "estimate"] == 0.0

    def test_a_mixture_of_normals(self):
        data = simulate(150, 8, spread=0.5, seed=2)
        one = MixedLogit(random=["x", "y"], random_state=0).fit(data)
        two = latent(mixing=Mixture(classes=2), correlated=False).fit(data)
        assert two.loo().elpd > one.loo().elpd + 3.0
        table = two.summary()
        means = table.loc[["class1.x", "class1.y", "class2.x", "class2.y"]]
        # Both classes have about half of the people, so that either may be the first.
        truth = TASTES if means["estimate"].iloc[0] > 0.0 else TASTES[::-1]
        assert (np.abs(means["estimate"] - truth.flatten()) < 4.0 * means["std_error"]).all()
        assert np.allclose(two.predict_proba(data.iloc[:12]).groupby(np.arange(12) // 3).sum(), 1.0)
        member = two.class_memberships(data[data["id"] < 20])
        assert np.allclose(member.sum(axis=1), 1.0, atol=1e-5)
        means = two.individual_coefficients(data[data["id"] < 20])
        assert np.isfinite(means.to_numpy()).all()

    @pytest.mark.slow
    def test_a_mixture_of_normals_against_chains(self):
        data = simulate(200, 8, spread=0.5, seed=2)
        settings = {"mixing": Mixture(classes=2), "correlated": False}
        fast = latent(**settings).fit(data)
        chains = latent(MCMC(warmup=300, samples=1_500), **settings).fit(data)
        table = chains.summary().iloc[: len(chains.coef_)]
        assert (np.abs(fast.coef_ - chains.coef_) < 0.4 * table["std_error"]).all()

    def test_labels_of_states_are_restored(self):
        layout = space()
        vector = torch.arange(layout.size, dtype=torch.float64)
        moved = layout.unconstrain(layout.permuted(layout.constrain(vector), [1, 2, 0]))
        gaussian = GaussianFactor(vector, torch.eye(layout.size, dtype=torch.float64))
        found, count = relabel(layout, torch.stack([vector, moved])[None], gaussian)
        assert count == 1
        assert torch.allclose(found[0, 1], vector)

    def test_weighted_draws_have_one_labelling(self):
        """Copies of the posterior under other labels are left out of its integral, which counts all labellings."""
        layout = space()
        vector = torch.arange(layout.size, dtype=torch.float64)
        moved = layout.unconstrain(layout.permuted(layout.constrain(vector), [1, 2, 0]))
        gaussian = GaussianFactor(vector, torch.eye(layout.size, dtype=torch.float64))
        weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        drawn = WeightedVectors(torch.stack([vector, moved, vector + 0.1]), weights.log(), 0.3, weights, -7.0)
        found = of_one_labelling(layout, drawn, gaussian)
        assert torch.equal(found.vectors, drawn.vectors[[0, 2]])
        torch.testing.assert_close(found.log_weights.exp(), torch.tensor([5.0, 2.0], dtype=torch.float64) / 7.0)
        assert found.log_evidence == pytest.approx(-7.0 + np.log(0.7))
        assert of_one_labelling(layout, found, gaussian) is found

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::mxlogit.errors.ConvergenceWarning")
    def test_empty_classes_are_not_missed(self):
        """With four classes where there are two, most of the posterior has classes without members."""
        data = simulate(300, 8, seed=5)
        right, wrong = (latent(mixing=Mixture(classes=c, spread=0)).fit(data) for c in (2, 4))
        assert right.diagnostics_["trusted"]
        assert not wrong.diagnostics_["trusted"]
        if wrong.diagnostics_["rung"] == "weighted draws":
            assert "hardly any members" in wrong.diagnostics_["trust"]
        # Two more classes cost what their empty shares cost: a few nats each.
        assert 0.0 < right.diagnostics_["log_evidence"] - wrong.diagnostics_["log_evidence"] < 14.0


def by_hand(est, frame):
    """Choice probabilities (rows, samples) of two classes, from posterior samples alone."""
    samples = est.posterior_samples()
    x = frame[["x", "y"]].to_numpy().reshape(-1, 3, 2)
    logit = samples["class2.membership"].to_numpy() + np.outer(frame["z"], samples["class2.membership:z"])
    second = 1.0 / (1.0 + np.exp(-logit))
    parts = []
    for c in (1, 2):
        utility = x @ samples[[f"class{c}.x", f"class{c}.y"]].to_numpy().T
        odds = np.exp(utility - utility.max(1, keepdims=True))
        parts.append((odds / odds.sum(1, keepdims=True)).reshape(len(frame), -1))
    return (1.0 - second) * parts[0] + second * parts[1], parts, second


class TestAnswers:
    def test_predictions_are_means_over_classes(self, est, frame):
        some = frame[frame["id"] < 5]
        found, want = est.predict_proba(some), by_hand(est, some)[0].mean(1)
        assert np.allclose(found, want, atol=1e-3)
        of_class = est.predict_proba(some, tastes="class2")
        assert np.allclose(of_class, by_hand(est, some)[1][1].mean(1), atol=1e-3)

    def test_shares_and_their_intervals(self, est, frame):
        table = est.shares(frame, interval=0.9)
        values = by_hand(est, frame)[0].reshape(-1, 3, 4_000).mean(0)
        assert np.allclose(table["estimate"], values.mean(1), atol=1e-3)
        assert np.allclose(table[["lower", "upper"]], np.quantile(values, [0.05, 0.95], axis=1).T, atol=2e-3)

    @pytest.mark.parametrize("tastes", ["population", "class1"])
    def test_marginal_effects_by_differences(self, est, frame, tastes):
        some, step = frame[frame["id"] < 10], 1e-4
        mask = some["alternative"] == 0
        moved = [some.assign(x=some["x"] + sign * step * mask) for sign in (1, -1)]
        above, below = (est.predict_proba(part, tastes=tastes) for part in moved)
        slope = ((above - below) / (2 * step)).groupby(some["alternative"]).mean()
        found = est.marginal_effects(some, "x", tastes=tastes).loc[0, "estimate"]
        assert np.allclose(found, slope, atol=2e-3)

    def test_surplus_by_hand(self, est, frame):
        some = frame[frame["id"] < 10]
        after = some.assign(y=some["y"] - 0.5 * (some["alternative"] == 1))
        samples = est.posterior_samples()

        def log_sum(data, c):
            utility = (
                data[["x", "y"]].to_numpy().reshape(-1, 3, 2) @ samples[[f"class{c}.x", f"class{c}.y"]].to_numpy().T
            )
            return np.log(np.exp(utility).sum(1))

        second = by_hand(est, some)[2][::3]
        gains = [(log_sum(after, c) - log_sum(some, c)) / -samples[f"class{c}.y"].to_numpy() for c in (1, 2)]
        want = ((1.0 - second) * gains[0] + second * gains[1]).mean()
        table = est.surplus(some, after, "y")
        assert table.loc["mean", "estimate"] == pytest.approx(want, abs=2e-3)
        assert table.loc["share of winners", "estimate"] == 1.0

    def test_willingness_to_pay(self, est):
        samples, weights = est.posterior_samples(), est.class_tastes().xs("share", level="statistic")["estimate"]
        ratios = [-(samples[f"class{c}.x"] / samples[f"class{c}.y"]) for c in (1, 2)]
        for c in (1, 2):
            table = est.wtp("x", "y", f"class{c}")
            assert table.loc["50 %", "estimate"] == pytest.approx(ratios[c - 1].median(), abs=0.01)
        table = est.wtp("x", "y")
        assert table.loc["mean", "estimate"] == pytest.approx(
            (weights.to_numpy() * np.array([r.mean() for r in ratios])).sum(), abs=0.02
        )
        assert table.loc["share below zero", "estimate"] == pytest.approx(weights["class2"].item(), abs=0.01)
        low = est.wtp("x", "y", covariates={"z": -3.0}).loc["share below zero", "estimate"]
        assert low < 0.15

    def test_memberships_and_tastes_of_people(self, est, frame):
        member, tastes = est.class_memberships(), est.individual_coefficients()
        assert np.allclose(member.sum(axis=1), 1.0)
        means = est.class_tastes().xs(("mean", "x"), level=("statistic", "coefficient"))["estimate"].to_numpy()
        assert np.allclose(tastes[("x", "mean")], member.to_numpy() @ means, atol=0.02)
        some = frame[frame["id"].isin([3, 7])]
        assert np.allclose(est.class_memberships(some), member.loc[[3, 7]], atol=1e-12)

    def test_moments_of_the_population(self, est):
        table, classes = est.taste_distribution(), est.class_tastes()["estimate"]
        share = classes.xs("share", level="statistic").to_numpy()
        means = classes.xs(("mean", "x"), level=("statistic", "coefficient")).to_numpy()
        mean = share @ means
        assert table.loc["x", "mean"] == pytest.approx(mean, abs=0.01)
        assert table.loc["x", "sd"] == pytest.approx(np.sqrt(share @ (means - mean) ** 2), abs=0.01)

    def test_score_is_the_log_likelihood(self, maximum, frame):
        assert maximum.score(frame) * maximum.n_situations_ == pytest.approx(maximum.log_likelihood_, abs=1e-6)

    def test_the_number_of_classes_has_no_likelihood_ratio(self, maximum, frame):
        plain = latent("msle", mixing=Mixture(classes=2, spread=0)).fit(frame)
        assert likelihood_ratio_test(plain, maximum).degrees_of_freedom == 1
        assert likelihood_ratio_test(plain, maximum).p_value < 1e-6

    @pytest.mark.slow
    def test_another_number_of_classes_is_refused(self, frame):
        plain = latent("msle", mixing=Mixture(classes=2, spread=0)).fit(frame)
        with pytest.raises(SpecificationError, match="no chi-square"):
            likelihood_ratio_test(plain, latent("msle", mixing=Mixture(classes=3, spread=0)).fit(frame))

    def test_saved_models_answer_alike(self, est, frame, tmp_path):
        est.save(tmp_path / "model")
        again, some = MixedLogit.load(tmp_path / "model"), frame[frame["id"] < 5]
        assert again.predict_proba(some).equals(est.predict_proba(some))
        assert again.summary().equals(est.summary())
        assert again.class_memberships().equals(est.class_memberships())

    def test_plots_and_report(self, est, tmp_path):
        pytest.importorskip("matplotlib").use("Agg")
        pytest.importorskip("jinja2")
        assert len(plots.plot_classes(est)) == 2
        labels = [text.get_text() for text in plots.plot_classes(est, ["x"])[0].get_yticklabels()]
        assert labels[0].startswith("class1 (")
        est.report(tmp_path / "page.html")
        assert "Classes" in (tmp_path / "page.html").read_text()

    def test_comparison_with_chains(self, frame):
        small = frame[frame["id"] < 100]
        table = compare_with_mcmc(latent().fit(small), small, MCMC(warmup=50, samples=100)).table
        assert "class1.x" in table.index.get_level_values(-1) or "class1.x" in table.index


class TestBadRequests:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"mixing": "latent"}, "must be None or Mixture"),
            ({"mixing": Mixture(classes=0)}, "at least 1"),
            ({"mixing": Mixture(classes=1, ignored={1: ["x"]})}, r"classes=1\) has neither"),
            ({"mixing": Mixture(classes=2, spread=0.5)}, "must be None"),
            ({"mixing": Mixture(classes=2, spread=0, membership="z")}, "list of column names"),
            ({"mixing": Mixture(classes=2, spread=0, membership=["x"])}, "named as attributes"),
            ({"mixing": Mixture(classes=2, spread=0, ignored={3: ["x"]})}, "is no class"),
            ({"mixing": Mixture(classes=2, spread=0, ignored={1: ["w"]})}, "not in random"),
            ({"mixing": Mixture(classes=2, spread=0), "held": {"x": 0.0}}, "cannot be combined"),
            ({"mixing": Mixture(classes=2, spread=0), "scale": "y"}, "cannot be combined"),
            ({"random": {"x": "uniform", "y": "normal"}}, "not so"),
            ({"random": [], "fixed": ["x"]}, "there are none"),
            ({"method": SVI()}, "knows no classes"),
        ],
    )
    def test_is_one_sentence(self, frame, settings, words):
        settings = {"random": ["x", "y"], "mixing": Mixture(classes=2, spread=0), **settings}
        with pytest.raises(SpecificationError, match=words):
            MixedLogit(**settings).fit(frame)

    def test_covariates_of_membership(self, frame):
        small = frame[frame["id"] < 30]
        with pytest.raises(ChoiceDataError, match="varies within"):
            latent().fit(small.assign(z=np.arange(len(small))))
        with pytest.raises(SpecificationError, match="same value for all"):
            latent().fit(small.assign(z=1.0))
        with pytest.raises(ChoiceDataError, match="z"):
            latent().fit(small.drop(columns="z"))
        both = latent(mixing=Mixture(classes=2, spread=0, membership=["z", "w"]))
        with pytest.raises(SpecificationError, match="linear combination"):
            both.fit(small.assign(w=2.0 * small["z"] + 1.0))

    def test_packs_have_no_covariates(self, frame, tmp_path):
        packed = pack_choices(
            frame, tmp_path / "pack", names=["x", "y", "z"]
        )  # fmt: skip
        with pytest.raises(ChoiceDataError, match="membership"):
            latent().fit(packed)

    def test_more_classes_than_people_tell(self, frame):
        with pytest.warns(match="hardly more members|only one led|nearly as well|follow from"):
            latent(VI(n_samples=100), mixing=Mixture(classes=5, spread=0)).fit(frame[frame["id"] < 15])

    def test_questions_about_classes_without_classes(self, frame):
        plain = MixedLogit(fixed=["x", "y"]).fit(frame[frame["id"] < 30])
        for ask in (plain.class_tastes, plain.class_memberships):
            with pytest.raises(SpecificationError, match="no classes"):
                ask()

    def test_unknown_classes(self, est, frame):
        for ask in (lambda: est.predict_proba(frame, tastes="class3"), lambda: est.wtp("x", "y", "class3")):
            with pytest.raises(SpecificationError, match="class2"):
                ask()


def test_the_layout_of_one_class_is_the_plain_one():
    layout = space(spread=True)
    assert layout.of_class == ParameterSpace((), ("b", "c"), ((0, 1),))
    assert MSLE().n_starts == 3


def test_a_mixture_of_one_class_is_the_plain_model(frame):
    """With spread within the class, and without: coefficients are fixed."""
    one, plain = (latent("msle", mixing=mixing).fit(frame) for mixing in (Mixture(classes=1), None))
    assert (one.coef_ == plain.coef_).all()
    assert one.log_likelihood_ == plain.log_likelihood_
    single = latent("msle", mixing=Mixture(classes=1, spread=0)).fit(frame)
    fixed = MixedLogit(fixed=["x", "y"], method="msle", random_state=0).fit(frame)
    assert (single.coef_ == fixed.coef_).all()


def test_evidence_of_one_class_is_its_integral(frame):
    """Against importance sampling of the posterior of a multinomial logit, and as a class of its own."""
    one, two = (latent(mixing=Mixture(classes=c, spread=0, membership=["z"][: c - 1])).fit(frame) for c in (1, 2))
    rows = frame.sort_values(["id", "situation", "alternative"])
    values = rows[["x", "y"]].to_numpy().reshape(-1, 3, 2)
    chosen = rows["choice"].to_numpy(bool).reshape(-1, 3)
    samples = one.posterior_samples()[["x", "y"]].to_numpy()
    proposal = stats.multivariate_normal(samples.mean(0), 1.3 * np.cov(samples.T))
    points = proposal.rvs(2000, random_state=1)
    utility = values @ points.T
    log_prob = (utility[chosen] - np.log(np.exp(utility).sum(1))).sum(0)
    deviation = one._state().model.prior.deviation.numpy()
    ratio = log_prob + stats.norm.logpdf(points / deviation).sum(1) - np.log(deviation).sum() - proposal.logpdf(points)
    wanted = np.log(np.exp(ratio - ratio.max()).mean()) + ratio.max()
    assert one.diagnostics_["log_evidence"] == pytest.approx(wanted, abs=0.05)
    assert two.diagnostics_["log_evidence"] > wanted + 20.0
