"""Coefficients and means held at values, error components and nests."""

import numpy as np
import pytest
import torch

from mxlogit import (
    DADVI,
    MCMC,
    MSLE,
    SVI,
    ChoiceDataError,
    MixedLogit,
    SpecificationError,
    likelihood_ratio_test,
)
from mxlogit.choices import pack_choices
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.simulate import simulate_choices

NAMES = {"a1": "bus", "a2": "train", "a3": "car", "a4": "bike"}
PERSON_SD = 1.2


@pytest.fixture(scope="module")
def frame():
    """People who like or dislike transit as a whole, without a mean."""
    found, truth = simulate_choices(600, 6, 4, fixed={"x": -0.6}, random={"z": (0.7, 0.9)}, random_state=3)
    rng, person = np.random.default_rng(0), found["id"].to_numpy() - 1
    found["alternative"] = found["alternative"].map(NAMES)
    found["transit"] = found["alternative"].isin(["bus", "train"]).astype(float)
    utility = -0.6 * found["x"] + found["z"] * truth.tastes["z"].to_numpy()[person]
    utility = utility + found["transit"] * PERSON_SD * rng.standard_normal(600)[person] + rng.gumbel(size=len(found))
    found["choice"] = (utility.to_numpy().reshape(-1, 4).argmax(1)[:, None] == np.arange(4)).ravel()
    return found


pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")


def component(**settings):
    settings = {"held": {"transit": 0.0}, "random_state": 0, **settings}
    return MixedLogit(fixed=["x"], random=["z", "transit"], **settings)


@pytest.fixture(scope="module")
def est(frame):
    return component().fit(frame)


@pytest.fixture(scope="module")
def simulated(frame):
    return component(method=MSLE(n_draws=64)).fit(frame)


class TestParameterSpace:
    SPACE = ParameterSpace(("f", "g"), ("a", "b", "c"), ((0, 2), (1,)), ((0, 0.5), (3, -1.0)))
    VECTOR = torch.tensor([[0.3, 0.1, -0.2, 0.4, 0.2, -0.3, 0.6]], dtype=torch.float64)

    def test_vectors_and_populations_are_inverse(self):
        population = self.SPACE.constrain(self.VECTOR)
        assert population.fixed[0].tolist() == [0.5, 0.3]
        assert population.location[0].tolist() == [0.1, -1.0, -0.2]
        torch.testing.assert_close(self.SPACE.unconstrain(population), self.VECTOR)
        reported = self.SPACE.report(population)
        assert self.SPACE.labels == ["g", "a", "c", "sd.a", "sd.b", "sd.c", "cor.a:c"]
        assert reported.shape[-1] == len(self.SPACE.labels) == self.SPACE.size
        torch.testing.assert_close(self.SPACE.from_report(reported).location, population.location)

    def test_relative_moves_leave_what_is_held(self):
        population = PopulationParameters(*(part[0] for part in vars(self.SPACE.constrain(self.VECTOR)).values()))
        step = 0.01 * torch.arange(1.0, self.SPACE.size + 1, dtype=torch.float64)
        moved = self.SPACE.move(population, step)
        assert float(moved.fixed[0]) == 0.5
        assert float(moved.location[1]) == -1.0
        jacobian = torch.autograd.functional.jacobian(
            lambda s: self.SPACE.unconstrain(self.SPACE.move(population, s)), torch.zeros_like(step)
        )
        torch.testing.assert_close(self.SPACE.relative_jacobian(population), jacobian)


@pytest.mark.parametrize("method", [pytest.param("vi", marks=pytest.mark.slow), MSLE(n_draws=64)])
def test_holding_what_is_estimated_changes_nothing(frame, method):
    """Held at their own maximum, other parameters have the same one; their errors are conditional on it."""
    free = component(held=None, correlated=False, method=method).fit(frame)
    asked = {"x": free.coef_["x"], "transit": free.coef_["transit"]}
    held = component(held=asked, method=method).fit(frame)
    labels = ["z", "sd.z", "sd.transit"]
    assert list(held.coef_.index) == labels
    error = free.summary()["std_error"]
    assert (abs(held.coef_ - free.coef_[labels]) < 0.1 * error[labels]).all()
    assert held.log_likelihood_ == pytest.approx(free.log_likelihood_, abs=0.3)
    assert (held.summary()["std_error"] < 1.03 * error[labels]).all()


def test_restricted_model_by_likelihood_ratio(frame, simulated):
    """The gain of a free mean is that of one parameter; its estimate is within its error of zero."""
    free = component(held=None, correlated=False, method=MSLE(n_draws=64)).fit(frame)
    test = likelihood_ratio_test(simulated, free)
    z = free.coef_["transit"] / free.summary().loc["transit", "std_error"]
    assert test.statistic == pytest.approx(z**2, rel=0.1, abs=0.02)
    assert test.degrees_of_freedom == 1


def test_engines_agree(est, simulated):
    error = est.summary()["std_error"]
    assert (abs(est.coef_ - simulated.coef_) < 0.5 * error).all()
    assert abs(est.coef_["sd.transit"] - PERSON_SD) < 3.0 * error["sd.transit"]
    assert "transit" not in est.coef_


@pytest.mark.slow
def test_chains_agree(est, frame):
    chains = component(method=MCMC(samples=1_500)).fit(frame).summary()
    table = est.summary()
    assert (abs(chains["estimate"] - table["estimate"]) < 0.15 * chains["std_error"]).all()
    assert (abs(np.log(chains["std_error"] / table["std_error"])) < 0.1).all()


def test_short_chains_hold_it(frame):
    few = frame[frame["id"] <= 60]
    fit = component(method=MCMC(samples=50, warmup=50, chains=2)).fit(few)
    assert float(fit.result_.center.location[1]) == 0.0
    assert "sd.transit" in fit.coef_


def test_nests_are_error_components(frame, simulated):
    nested = MixedLogit(
        fixed=["x"], random=["z"], nests={"transit": ["bus", "train"]}, method=MSLE(n_draws=64), random_state=0
    ).fit(frame)
    assert nested.coef_["sd.nest.transit"] == pytest.approx(simulated.coef_["sd.transit"], abs=1e-6)
    np.testing.assert_allclose(nested.predict_proba(frame), simulated.predict_proba(frame), atol=1e-6)


def test_nests_make_closer_substitutes(est, frame):
    """Who leaves the bus goes by train, by the simulated truth as well."""
    nested = MixedLogit(fixed=["x"], random=["z"], nests={"transit": ["bus", "train"]}, random_state=0).fit(frame)
    found = nested.diversion(frame[frame["id"] <= 100])["estimate"]["bus"]
    assert found["train"] > 1.25 * found["car"]
    # Correlation over people of the utilities of bus and train: shared variance beside that of the Gumbel terms.
    shared = nested.coef_["sd.nest.transit"] ** 2
    truth = PERSON_SD**2 / (PERSON_SD**2 + np.pi**2 / 6)
    assert shared / (shared + np.pi**2 / 6) == pytest.approx(truth, abs=0.06)


def test_answers_and_saved_models(est, frame, tmp_path):
    est.save(tmp_path / "model")
    loaded = MixedLogit.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(frame), est.predict_proba(frame))
    tastes = est.taste_distribution()
    assert tastes.loc["transit", "mean"] == 0.0
    assert est.posterior_samples().shape[1] == len(est.coef_)
    assert abs(est.individual_coefficients()[("transit", "mean")].mean()) < 0.1
    wtp = est.wtp("transit", "x")["estimate"]
    assert wtp["50 %"] == pytest.approx(0.0, abs=0.01)


def test_held_components_stand_beside_correlated_tastes(frame):
    """Blocks are divided: correlations are those of tastes with means."""
    data = frame.assign(y=np.random.default_rng(1).standard_normal(len(frame)))
    est = MixedLogit(
        random=["x", "z", "y", "transit"], held={"transit": 0.0, "y": 0.0}, method=MSLE(n_draws=16), random_state=0
    ).fit(data)
    assert [label for label in est.coef_.index if label.startswith("cor.")] == ["cor.x:z", "cor.y:transit"]


def test_a_held_mean_needs_no_identification(frame):
    """The dummy of a component may be a sum of constants."""
    est = MixedLogit(
        fixed=["x"], random=["transit"], constants=True, held={"transit": 0.0}, method=MSLE(n_draws=16), random_state=0
    ).fit(frame)
    assert {"asc.train", "asc.car", "sd.transit"} <= set(est.coef_.index)
    with pytest.raises(SpecificationError, match="not identified"):
        MixedLogit(fixed=["x", "transit"], constants=True).fit(frame)


@pytest.mark.parametrize("method", [SVI(), DADVI(), MCMC(sampler="nuts")])
def test_engines_that_hold_nothing_say_so(frame, method):
    with pytest.raises(SpecificationError, match=r"\['transit'\] are held at values"):
        component(method=method).fit(frame)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"held": ["transit"]}, "must map columns to values"),
        ({"held": {"transit": "zero"}}, "finite numbers"),
        ({"held": {"transit": np.inf}}, "finite numbers"),
        ({"held": {"transit": True}}, "finite numbers"),
        ({"held": {"transit": 0.0}, "random": {"z": "normal", "transit": "lognormal"}}, "not so: {'transit'"),
        ({"held": {"transit": 0.0}, "correlated": [["z", "transit"]]}, "both held and estimated"),
        ({"nests": {"a": ["bus", "train"], "b": ["train", "bus"]}}, "the same alternatives"),
        ({"held": {"bus": 0.0}}, "no columns in fixed or random"),
        ({"held": {"transit": 0.0}, "scale": "x"}, "leave out scale"),
        ({"nests": ["bus"]}, "must map names to lists"),
        ({"nests": {"transit": "bus"}}, "must be a list of alternatives"),
        ({"nests": {"transit": []}}, "must be a list of alternatives"),
        ({"nests": {"transit": ["bus", "tram"]}}, r"\['tram'\] are not among the alternatives"),
        ({"nests": {"all": ["bus", "train", "car", "bike"]}}, "not identified"),
        ({"nests": {"a": ["bus", "train"], "b": ["car", "bike"]}}, "divide all alternatives between them"),
    ],
)
def test_bad_requests(frame, settings, sentence):
    with pytest.raises((SpecificationError, ChoiceDataError), match=sentence):
        MixedLogit(**{"fixed": ["x"], "random": ["z", "transit"], **settings}).fit(frame)


@pytest.mark.parametrize("method", ["vi", MSLE(n_draws=16)])
def test_only_standard_deviations_are_estimated(frame, method):
    component = MixedLogit(random=["transit"], held={"transit": 0.0}, method=method, random_state=0).fit(frame)
    nest = MixedLogit(nests={"t": ["bus", "train"]}, fixed=["x"], held={"x": -0.6}, method=method, random_state=0)
    assert list(component.coef_.index) == ["sd.transit"]
    assert list(nest.fit(frame).coef_.index) == ["sd.nest.t"]


def test_models_are_nested_if_what_is_held_is(frame, simulated):
    small = component(held={"transit": 0.0, "x": -0.6}, method=MSLE(n_draws=64)).fit(frame)
    other = component(held={"transit": 1.0}, method=MSLE(n_draws=64)).fit(frame)
    with pytest.raises(SpecificationError, match="does not hold at the same values"):
        likelihood_ratio_test(small, other)
    assert "x = -0.6" in likelihood_ratio_test(small, simulated).sentence


def test_alternatives_of_another_kind_are_no_other_alternatives(frame):
    numbers = {"bus": 1, "train": 2, "car": 3, "bike": 4}
    data = frame.assign(alternative=frame["alternative"].map(numbers))
    est = MixedLogit(fixed=["x"], nests={"t": [1, 2]}, method=MSLE(n_draws=16), random_state=0).fit(data)
    with pytest.raises(ChoiceDataError, match="none of the alternatives"):
        est.predict_proba(data.assign(alternative=data["alternative"].astype(str)))
    some = data[data["alternative"] != 3]
    assert est.predict_proba(some).groupby([some["id"], some["situation"]]).sum().to_numpy() == pytest.approx(1.0)


def test_nothing_left_and_packs(frame, tmp_path):
    with pytest.raises(SpecificationError, match="all coefficients are held"):
        MixedLogit(fixed=["x"], held={"x": 1.0}).fit(frame)
    with pytest.raises(ChoiceDataError, match="no constants"):
        MixedLogit(fixed=["x"], constants=True, held={"asc.tram": 1.0}).fit(frame)
    packed = pack_choices(frame, tmp_path / "pack", names=["x", "z", "transit"])
    with pytest.raises(ChoiceDataError, match="Pack their dummies"):
        MixedLogit(fixed=["x"], nests={"transit": ["bus", "train"]}).fit(packed)
    fit = component(method=MSLE(n_draws=16)).fit(packed)
    assert "sd.transit" in fit.coef_
