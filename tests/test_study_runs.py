"""Studies against known truths: designs, the evaluator, resuming, tables, the command."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mxlogit import MSLE, VI, ChoiceData, MixedLogit, SpecificationError
from mxlogit.cli import main
from mxlogit.simulate import simulate_published_study
from mxlogit.study import (
    DESIGNS,
    PublishedDesign,
    SimulatedDesign,
    attainable_errors,
    beside_published,
    evaluate,
    plot_seconds,
    published_results,
    run_study,
    summarise,
    write_results,
)
from mxlogit.study.designs import NEW_SITUATIONS
from mxlogit.study.metrics import covariance_of, true_covariance
from mxlogit.study.peers import Xlogit

FAST = {"fast": VI(correct=False, n_samples=30, draws=16)}
SMALL = SimulatedDesign({"r1": (0.5, 0.8)}, {"f1": 0.5}, correlation=None, situations=(4, 4), alternatives=3)
# What a run costs differs from time to time.
COSTS = ["seconds", "peak_mb"]
pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")


@pytest.mark.parametrize("name", list(DESIGNS))
def test_designs(name):
    """Truths have the labels of the model; what is kept from the fit is of the same people, or of others."""
    design = DESIGNS[name]
    sample, again = design.simulate(12, 3), design.simulate(12, 3)
    pd.testing.assert_series_equal(sample.parameters, again.parameters)
    assert not design.simulate(12, 4).tastes.equals(sample.tastes)
    est = MixedLogit(**design.request())
    fitted, people, _ = est._prepare(sample.data, _team())
    assert list(fitted.model.space.labels) == list(sample.parameters.index)
    assert len(people) == len(sample.tastes) == 12
    assert list(sample.tastes.columns) == list(est._specify().random)
    if isinstance(sample.new_situations, ChoiceData):
        assert sample.new_situations.observed.sum(1).tolist() == [NEW_SITUATIONS] * 12
        assert np.array_equal(sample.new_situations.decision_makers, sample.data.decision_makers)
    else:
        assert (sample.new_situations.groupby("id")["situation"].nunique() == NEW_SITUATIONS).all()
        assert set(sample.new_situations["id"]) == set(sample.data["id"]) == set(sample.tastes.index)
    matrix = true_covariance(sample.parameters, list(sample.tastes.columns))
    assert np.linalg.eigvalsh(matrix).min() > 0
    if name == "near_singular":
        assert matrix[0, 1] == pytest.approx(0.97 * matrix[0, 0] ** 0.5 * matrix[1, 1] ** 0.5)


def _team():
    from mxlogit.execution.processes import Communicator

    return Communicator()


@pytest.mark.reference
def test_the_published_design_is_the_published_one():
    """Its data, its priors, its sizes; choices in new situations follow the same tastes."""
    design = PublishedDesign()
    assert [design.situations(n) for n in (500, 2_000, 50_000)] == [5, 10, 10]
    sample = design.simulate(500, 2)
    assert simulate_published_study(500, 5, 2).best_share == pytest.approx(46.28, abs=0.01)
    assert np.array_equal(sample.data.chosen, simulate_published_study(500, 5, 2).data.chosen)
    attributes, tastes = sample.new_situations.attributes.double().numpy(), sample.tastes.to_numpy()
    utility = attributes[..., :3] @ sample.parameters[["f1", "f2", "f3"]].to_numpy()
    utility = utility + (attributes[..., 3:] * tastes[:, None, None]).sum(-1)
    best = float((utility.argmax(-1) == sample.new_situations.chosen.numpy()).mean())
    assert best == pytest.approx(0.46, abs=4 * 0.5 / np.sqrt(2_500))


@pytest.fixture(scope="module")
def fitted():
    sample = PublishedDesign().simulate(60, 1)
    return MixedLogit(**PublishedDesign().request(), method=FAST["fast"], random_state=1).fit(sample.data), sample


def test_the_evaluator(fitted):
    """Every figure by another way."""
    est, sample = fitted
    found = evaluate(est, sample)
    truth = sample.parameters[["f1", "f2", "f3"]].to_numpy()
    assert found["rmse_alpha"] == pytest.approx(np.sqrt(np.mean((est.summary()["estimate"][:3] - truth) ** 2)))
    samples = est.posterior_samples()
    sds = samples[[f"sd.r{i}" for i in range(1, 6)]].to_numpy()
    np.testing.assert_allclose(np.diag(covariance_of(est)), (sds**2).mean(0), rtol=1e-6)
    covariance = (samples["cor.r1:r2"] * samples["sd.r1"] * samples["sd.r2"]).mean()
    assert covariance_of(est)[0, 1] == pytest.approx(covariance, rel=1e-6)
    omega = np.sqrt(np.mean((covariance_of(est) - (0.8 + 0.2 * np.eye(5))) ** 2))
    assert found["rmse_omega"] == pytest.approx(omega)
    means = est.individual_coefficients(statistic=["mean"]).droplevel(1, axis=1)
    assert found["rmse_beta_n"] == pytest.approx(np.sqrt(((means.to_numpy() - sample.tastes.to_numpy()) ** 2).mean()))
    quantiles = samples.quantile([0.05, 0.95])
    inside = sample.parameters.between(quantiles.iloc[0], quantiles.iloc[1])
    assert found["covered_cor"] == pytest.approx(inside[inside.index.str.startswith("cor.")].mean(), abs=0.11)
    assert found["log_score_same_people"] > np.log(1 / 5)
    assert found["log_score_new_people"] == pytest.approx(est.score(sample.new_people))
    assert found["log_likelihood"] == est.log_likelihood_


class _Shifted(SimulatedDesign):
    """A design of one's own that says the same of itself, and makes other data."""

    def __init__(self):
        super().__init__(SMALL.random, SMALL.fixed, SMALL.correlation, SMALL.situations, SMALL.alternatives)

    def simulate(self, people, run):
        return super().simulate(people, run + 1)


def test_a_study_that_was_stopped_goes_on(tmp_path):
    whole = run_study(SMALL, sizes=[30], runs=2, methods=FAST)
    path = tmp_path / "runs"
    run_study(SMALL, sizes=[30], runs=[2], methods=FAST, path=path)
    with path.open("a") as stream:
        stream.write('{"people": 30, "method": "fast", "ru')
    begun = path.read_text()
    resumed = run_study(SMALL, sizes=[30], runs=2, methods=FAST, path=path)
    pd.testing.assert_frame_equal(resumed.drop(columns=COSTS), whole.drop(columns=COSTS))
    assert path.read_text().startswith(begun)
    assert resumed["run"].tolist() == [1, 2]
    assert (resumed["failure"] == "").all()
    with pytest.raises(SpecificationError, match="another study"):
        run_study(SMALL, sizes=[30], runs=1, methods={"fast": VI()}, path=path)
    described = SimulatedDesign({**SMALL.random, "r1": (0.5, 0.8, "uniform")}, SMALL.fixed, None, (4, 4), 3)
    with pytest.raises(SpecificationError, match=r"another study: other data .*other random"):
        run_study(described, sizes=[30], runs=1, methods=FAST, path=path)
    with pytest.raises(SpecificationError, match=r"another study: other data \("):
        run_study(_Shifted(), sizes=[30], runs=1, methods=FAST, path=path)
    path.write_text("something else\n")
    with pytest.raises(SpecificationError, match="another study"):
        run_study(SMALL, sizes=[30], runs=1, methods=FAST, path=path)
    assert path.read_text() == "something else\n"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecificationError, match="cannot be read"):
        run_study(SMALL, sizes=[30], runs=1, methods=FAST, path=path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecificationError, match="cannot be read"):
        run_study(SMALL, sizes=[30], runs=1, methods=FAST, path=tmp_path / "folder")


@pytest.mark.slow
def test_several_processes_are_one():
    alone, together = (run_study(SMALL, sizes=[30], runs=2, methods=FAST, processes=p) for p in (1, 2))
    pd.testing.assert_frame_equal(together.drop(columns=COSTS), alone.drop(columns=COSTS))


def test_a_fit_that_fails_is_a_row(tmp_path):
    table = run_study(_Twins(), sizes=[20], runs=1, methods=FAST, path=tmp_path / "runs")
    assert table["failure"].iloc[0].startswith("SpecificationError: ")
    assert summarise(table)["failed"].tolist() == [1]


class _Twins:
    """Two columns that are the same: neither coefficient is identified."""

    def __repr__(self):
        return "twins"

    def request(self):
        return {"fixed": ["f1", "f2"], "random": ["r1"]}

    def simulate(self, people, run):
        sample = SMALL.simulate(people, run)
        data = sample.data.assign(f2=sample.data["f1"])
        return type(sample)(data, sample.parameters, sample.tastes, sample.new_situations, sample.new_people)


def results():
    rows = [
        {"people": 500, "method": "vi", "run": run, "failure": "", "rmse_alpha": 0.1 * run, "seconds": float(run)}
        for run in (1, 2, 4)
    ]
    table = pd.DataFrame(rows).assign(rmse_zeta=0.1, rmse_omega=0.2, rmse_beta_n=0.7)
    table.attrs["machine"] = {"cores": 2}
    return table


def test_means_medians_and_standard_errors():
    row = summarise(results()).loc[(500, "vi")]
    assert row["runs"] == 3
    assert row["failed"] == 0
    assert row["rmse_alpha"] == pytest.approx(0.7 / 3)
    assert row["rmse_alpha_se"] == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1) / np.sqrt(3))
    assert row["seconds"] == 2.0


@pytest.mark.reference
def test_published_results_are_those_of_the_reference():
    known = json.loads((Path(__file__).parent / "reference" / "simulation_study.json").read_text())
    table = published_results()
    for record in known["table_A"]["records"]:
        row = table.loc[(record["N"], record["method"])]
        assert row["seconds"] == record["time_s"]
        assert row["rmse_omega"] == pytest.approx(record["rmse_omega"], nan_ok=True)
    for bound in known["attainable"]["bounds"]:
        assert table.loc[(bound["N"], "attainable"), "rmse_zeta"] == bound["rmse_zeta"]
    shown = beside_published(results())
    assert shown.index.tolist() == [
        (500, "vi"),
        (500, "published MSLE"),
        (500, "published Gibbs"),
        (500, "published AVI v2-d"),
        (500, "attainable"),
    ]
    assert shown.loc[(500, "published Gibbs"), "seconds"] == 228
    assert shown.loc[(500, "vi"), "rmse_omega"] == pytest.approx(0.2)


@pytest.mark.reference
def test_attainable_errors_are_those_of_the_reference():
    """Against bounds by outer products of 2 x 2,000 people with 3,000 draws, made by other software."""
    found = attainable_errors(PublishedDesign(), 2_000, simulated=2_000)
    known = published_results().loc[(2_000, "attainable")]
    for name, value in found.items():
        assert value == pytest.approx(known[name], rel=0.06), name


def test_no_attainable_error_of_maps_that_depend_on_the_population():
    design = SimulatedDesign({"r1": (0.5, 0.8, "uniform")}, {"f1": 0.5}, correlation=None)
    with pytest.raises(SpecificationError, match="latents alone"):
        attainable_errors(design, 20, simulated=20)


def test_picture_of_seconds():
    import matplotlib as mpl

    mpl.use("Agg")
    table = pd.concat([results(), results().assign(people=2_000)])
    ax = plot_seconds(table, published=("Gibbs",))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["vi"]
    assert ax.lines[0].get_ydata().tolist() == [228, 1257]
    with pytest.raises(SpecificationError, match="nothing to plot"):
        plot_seconds(table.assign(seconds=np.nan))
    with pytest.raises(SpecificationError, match="unknown; there are"):
        plot_seconds(table, published=("Nobody",))


def test_xlogit_finds_the_optimum_of_simulated_likelihood():
    """Uncorrelated tastes: the same model, the same maximum but for draws, by our own evaluator."""
    methods = {"msle": MSLE(n_draws=500), "xlogit": Xlogit(500)}
    design = SimulatedDesign({"r1": (0.5, 0.8), "r2": (-0.5, 0.6)}, {"f1": 0.5}, correlation=None, situations=(6, 8))
    table = run_study(design, sizes=[150], runs=1, methods=methods).set_index("method")
    assert (table["failure"] == "").all()
    ours, theirs = table.loc["msle"], table.loc["xlogit"]
    assert theirs["log_likelihood"] == pytest.approx(ours["log_likelihood"], abs=0.5)
    for name in ("rmse_alpha", "rmse_zeta", "rmse_omega", "rmse_beta_n"):
        assert theirs[name] == pytest.approx(ours[name], abs=0.05)
    assert theirs["seconds"] > 0
    failed = run_study("many_tastes", sizes=[20], runs=1, methods={"xlogit": Xlogit(8)})
    assert len(failed) == 1
    lost = run_study(
        SimulatedDesign({"r1": (0.5, 0.8, "uniform")}, {"f1": 0.5}), sizes=[20], runs=1, methods={"xlogit": Xlogit(8)}
    )
    assert "normal and lognormal" in lost["failure"].iloc[0]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_results_are_written(ending, tmp_path):
    path = tmp_path / f"study.{ending}"
    write_results(results(), path)
    back = pd.read_csv(path, keep_default_na=False) if ending == "csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(back, results(), check_dtype=False)
    assert json.loads((tmp_path / "study.machine.json").read_text()) == {"cores": 2}
    with pytest.raises(SpecificationError, match="csv or"):
        write_results(results(), tmp_path / "study.txt")


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(DESIGNS, "short", SMALL)
    out = tmp_path / "study.csv"
    command = ["study", "short", "--sizes", "20", "--runs", "1", "--methods", "msle", "--out", str(out)]
    assert main(command) == 0
    assert "rmse_omega" in capsys.readouterr().out
    assert len(pd.read_csv(out)) == 1
    assert (tmp_path / "study.csv.runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foo"], "design must be one of"),
        (["published", "--sizes", "5x"], "whole numbers"),
        (["published", "--runs", "0"], "at least 1"),
        (["published", "--methods", "vj"], "Did you mean 'vi'"),
        (["published", "--out", "study.txt"], ".csv or .parquet"),
        (["published", "--processes", "0"], "processes"),
    ],
)
def test_wrong_commands_end_in_a_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
