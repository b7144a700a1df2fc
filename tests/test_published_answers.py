"""Published post-estimation figures: mlogit 2.0-0's worked examples (tests/reference, provenance in its README)."""

import numpy as np
import pandas as pd
import pytest

from mxlogit import MixedLogit
from mxlogit.choices import wide_to_long

pytestmark = pytest.mark.reference
MODES = ("car", "train", "air")
CANADA = ["cost", "freq", "income_train", "income_air", "asc_train", "asc_air", "time_car", "time_train", "time_air"]
SYSTEMS = ["gc", "gr", "ec", "er", "hp"]


def by_alternative(frame):
    """Interactions with alternatives, the car as base."""
    frame = frame.copy()
    for mode in MODES:
        here = frame["alt"] == mode
        frame[f"time_{mode}"], frame[f"asc_{mode}"] = here * frame["time"], here * 1.0
        frame[f"income_{mode}"] = here * frame["income"]
    return frame


@pytest.fixture(scope="module")
def canada(request):
    frame = pd.read_csv(request.config.rootpath / "tests" / "reference" / "mode_canada.csv.gz")
    frame = frame[(frame["noalt"] == 4) & frame["alt"].isin(MODES)]
    frame = frame[frame.groupby("case")["choice"].transform("sum") == 1]
    return by_alternative(frame.assign(time=frame["ivt"] + frame["ovt"]))


@pytest.fixture(scope="module")
def travel(canada):
    keys = {"decision_maker": "case", "situation": "case", "alternative": "alt"}
    return MixedLogit(fixed=CANADA, method="msle", random_state=0, **keys).fit(canada)


def test_estimates_of_mode_canada(travel):
    assert travel.log_likelihood_ == pytest.approx(-1951.344, abs=1e-3)
    assert travel.coef_[["cost", "freq"]].tolist() == pytest.approx([-0.02849715, 0.07402902], rel=1e-5)


def test_shares_under_faster_trains(canada, travel):
    faster = canada.assign(time_train=0.8 * canada["time_train"])
    shares = travel.shares([canada, faster])
    assert shares["base"][list(MODES)].tolist() == pytest.approx([0.4575659, 0.1672084, 0.3752257], abs=1e-6)
    assert shares["scenario"][list(MODES)].tolist() == pytest.approx([0.4044736, 0.2635801, 0.3319462], abs=1e-6)
    assert shares["scenario - base"].sum() == pytest.approx(0.0, abs=1e-12)


def test_surplus_of_faster_trains(canada, travel):
    faster = canada.assign(time_train=0.8 * canada["time_train"])
    each = travel.surplus(canada, faster, "cost", each=True)["estimate"]
    found = [each.min(), *each.quantile([0.25, 0.5, 0.75]), each.mean(), each.max()]
    assert found == pytest.approx([0.5852, 2.8439, 3.8998, 5.8437, 4.6971, 31.3912], abs=6e-5)
    assert travel.surplus(canada, faster, "cost").loc["mean", "estimate"] == pytest.approx(each.mean(), rel=1e-9)


def test_elasticities_at_mean_attributes(canada, travel):
    means = canada.groupby("alt")[["cost", "freq", "income", "time"]].mean().reset_index().assign(case=1)
    found = travel.elasticities(by_alternative(means), "cost")["estimate"]
    expected = {
        "car": [-0.9131273, 0.9376923, 0.9376923],
        "train": [0.3358005, -1.2505014, 0.3358005],
        "air": [1.2316679, 1.2316679, -3.1409703],
    }
    for changed, values in expected.items():
        assert found[changed][list(MODES)].tolist() == pytest.approx(values, rel=2e-5)


def test_effects_of_income_at_mean_attributes(canada, travel):
    """In points per 100 % of income: the income of all alternatives changes, so their effects add up."""
    means = by_alternative(
        canada.groupby("alt")[["cost", "freq", "income", "time"]].mean().reset_index().assign(case=1)
    )
    effects = sum(
        travel.marginal_effects(means, f"income_{mode}", discrete=False)["estimate"][mode] for mode in ("train", "air")
    )
    expected = {"car": -0.1822177, "train": -0.1509079, "air": 0.3331256}
    found = effects * means["income"].iloc[0]
    assert found[list(MODES)].tolist() == pytest.approx([expected[mode] for mode in MODES], rel=2e-5)


def test_values_of_time_in_dollars_per_hour(travel):
    found = [-60.0 * travel.wtp(f"time_{mode}", "cost").loc["mean", "estimate"] for mode in MODES]
    assert found == pytest.approx([29.52728, 23.09447, 36.95360], rel=1e-5)


@pytest.fixture(scope="module")
def heating(request):
    wide = pd.read_csv(request.config.rootpath / "tests" / "reference" / "heating.csv.gz")
    columns = {name: {s: f"{name}.{s}" for s in SYSTEMS} for name in ("ic", "oc")}
    frame = wide_to_long(wide, columns, decision_maker="idcase", choice="depvar")
    return with_constants(frame)


def with_constants(frame):
    """Constants by hand, the heat pump as base, so that a new alternative may have that of another."""
    frame = frame.copy()
    like = frame["alternative"].replace("new", "ec")
    for system in SYSTEMS[:-1]:
        frame[f"asc_{system}"] = (like == system) * 1.0
    return frame


@pytest.fixture(scope="module")
def heater(heating):
    names = ["ic", "oc", *(f"asc_{system}" for system in SYSTEMS[:-1])]
    return MixedLogit(fixed=names, decision_maker="idcase", method="msle", random_state=0).fit(heating)


def test_heating_without_constants(heating):
    est = MixedLogit(fixed=["ic", "oc"], decision_maker="idcase", method="msle", random_state=0).fit(heating)
    assert est.log_likelihood_ == pytest.approx(-1095.2, abs=0.05)
    assert est.coef_.tolist() == pytest.approx([-0.0062319, -0.0045801], abs=1e-7)
    assert -est.wtp("oc", "ic").loc["mean", "estimate"] == pytest.approx(0.7349453, rel=1e-5)


def test_discount_rate_of_heating(heater):
    assert heater.coef_[["ic", "oc"]].tolist() == pytest.approx([-0.0015332, -0.0069964], abs=1e-7)
    ratio = -heater.wtp("oc", "ic").loc["mean", "estimate"]
    assert ratio == pytest.approx(4.563385, rel=1e-4)
    assert 1.0 / ratio == pytest.approx(0.2191356, rel=1e-4)


def test_a_rebate_on_heat_pumps(heating, heater):
    pumps = heating["alternative"] == "hp"
    cheaper = heating.assign(ic=np.where(pumps, 0.9, 1.0) * heating["ic"])
    shares = heater.shares({"today": heating, "rebate": cheaper}, interval=0.9)["estimate"]
    assert shares["today"]["hp"] == pytest.approx(0.05555556, abs=1e-6)
    assert shares["rebate"]["hp"] == pytest.approx(0.06446230, abs=1e-6)
    assert shares["rebate - today"]["hp"] == pytest.approx(0.06446230 - 0.05555556, abs=1e-6)


def test_a_new_alternative(heating, heater):
    new = heating[heating["alternative"] == "ec"]
    new = new.assign(alternative="new", ic=new["ic"] + 200.0, oc=0.75 * new["oc"])
    shares = heater.shares(with_constants(pd.concat([heating, new])))
    expected = {
        "ec": 0.06311578,
        "er": 0.08347713,
        "gc": 0.57145108,
        "gr": 0.12855080,
        "hp": 0.04977350,
        "new": 0.10363170,
    }
    assert shares.to_dict() == pytest.approx(expected, abs=1e-6)
