"""The command line: transcripts of its commands, and mistakes told in a sentence."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from mxlogit import MixedLogit
from mxlogit.cli import main
from mxlogit.simulate import simulate_choices

CONFIG = """
[data]
file = "choices.csv"
decision_maker = "person"

[model]
fixed = ["x"]
random = {z = "normal", cost = "negative_lognormal"}
correlated = false

[engine]
settings = {n_samples = 300, correct = false}

[questions]
wtp = [{attribute = "z", cost = "cost"}]
elasticities = ["cost"]
marginal_effects = ["x"]
shares = true
diversion = true
interval = 0.9

[output]
folder = "found"
"""


@pytest.fixture(scope="module")
def frame():
    random = {"z": (0.7, 0.9), "cost": (-0.5, 0.4, "negative_lognormal")}
    frame = simulate_choices(80, 5, 3, fixed={"x": -0.6}, random=random, random_state=2)[0]
    return frame.rename(columns={"id": "person"}).astype({"choice": int})


@pytest.fixture(scope="module")
def place(frame, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    frame.to_csv(folder / "choices.csv", index=False)
    (folder / "config.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def fitted(place):
    assert main(["fit", str(place / "config.toml")]) in (0, 3)
    return place / "found"


def test_fit_writes_a_folder(place, fitted, frame):
    names = {path.name for path in fitted.iterdir()}
    tables = {f"{name}.csv" for name in ("summary", "tastes", "people", "shares", "diversion", "wtp_z_cost")}
    assert names >= tables | {"elasticities_cost.csv", "marginal_effects_x.csv", "diagnostics.json", "model"}
    assert {"report.html", "tastes.png"} <= names
    est = MixedLogit.load(fitted / "model")
    table = pd.read_csv(fitted / "summary.csv", index_col=0)
    pd.testing.assert_frame_equal(table, est.summary(), check_names=False)
    answer = pd.read_csv(fitted / "wtp_z_cost.csv", index_col=0)
    pd.testing.assert_frame_equal(answer, est.wtp("z", "cost", interval=0.9), check_names=False)
    facts = json.loads((fitted / "diagnostics.json").read_text())
    assert facts["status"] == est.diagnostics_["status"]


def quick(place, name, **changes):
    """A configuration of a multinomial logit."""
    random = 'random = {z = "normal", cost = "negative_lognormal"}\ncorrelated = false'
    text = CONFIG.replace('fixed = ["x"]', 'fixed = ["x", "z", "cost"]').replace(random, "")
    text = text.replace("settings = {n_samples = 300, correct = false}", "settings = {n_samples = 300}")
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    (place / name).write_text(text)
    return str(place / name)


def test_fit_shows_what_it_found(place, capsys):
    assert main(["fit", quick(place, "quick.toml", folder=('"found"', '"quick"'))]) == 0
    out = capsys.readouterr().out
    for words in ("1,200 rows", "Converged", "estimates", "wtp z cost", "same for everybody", "Results in"):
        assert words in out


def test_the_exit_status_says_whether_to_rely_on_it(place, capsys):
    changes = {"engine": ("n_samples = 300", "warmup = 10, samples = 6"), "folder": ('"found"', '"unfinished"')}
    method = ("[engine]", '[engine]\nmethod = "mcmc"')
    assert main(["fit", quick(place, "short.toml", method=method, **changes)]) == 3
    assert "Not converged" in capsys.readouterr().out
    assert (place / "unfinished" / "summary.csv").exists()


def test_predict_writes_the_rows_of_the_data(place, fitted, frame, capsys):
    arguments = ["predict", str(fitted / "model"), str(place / "choices.csv"), "--interval", "0.9"]
    assert main([*arguments, "--out", str(place / "predicted.csv")]) == 0
    table = pd.read_csv(place / "predicted.csv")
    est = MixedLogit.load(fitted / "model")
    expected = est.predict_proba(frame, interval=0.9)
    pd.testing.assert_series_equal(table["probability"], expected["estimate"], check_names=False, check_index=False)
    assert {"lower", "upper", *frame.columns} <= set(table)
    assert "1,200 rows" in capsys.readouterr().out
    assert main(["predict", str(fitted / "model"), str(place / "choices.csv"), "--tastes", "individual"]) == 0
    assert "probability" in capsys.readouterr().out


def test_wtp_and_compare_ask_saved_models(place, fitted, frame, capsys):
    assert main(["wtp", str(fitted / "model"), "z", "cost", "--out", str(place / "wtp.csv")]) == 0
    assert "share below zero" in capsys.readouterr().out
    assert (place / "wtp.csv").exists()
    other = MixedLogit(fixed=["x", "z", "cost"], decision_maker="person", method="msle", random_state=0).fit(frame)
    other.save(place / "logit")
    assert main(["compare", str(fitted / "model"), str(place / "logit"), "--out", str(place / "compared.csv")]) == 0
    table = pd.read_csv(place / "compared.csv", index_col=0)
    assert set(table.index) == {"found", "logit"}
    assert "elpd" in capsys.readouterr().out


def test_init_writes_a_configuration_that_fits(place, frame, monkeypatch, capsys):
    monkeypatch.chdir(place)
    frame.rename(columns={"person": "id"}).to_csv(place / "usual.csv", index=False)
    assert main(["init", "usual.csv", "--out", "usual.toml"]) == 0
    text = (place / "usual.toml").read_text()
    assert 'decision_maker = "id"' in text
    assert 'fixed = ["x", "z", "cost"]' in text
    assert main(["fit", "usual.toml"]) in (0, 3)
    assert "shares" in capsys.readouterr().out


def test_init_says_what_it_could_not_find(place, frame, capsys):
    frame.rename(columns={"person": "who"}).to_csv(place / "unusual.csv", index=False)
    assert main(["init", str(place / "unusual.csv"), "--out", str(place / "unusual.toml")]) == 0
    assert "['decision_maker']" in capsys.readouterr().out
    assert main(["fit", str(place / "unusual.toml")]) == 1
    assert "no column '?'" in capsys.readouterr().err


def written(place, name, old, new):
    (place / name).write_text(CONFIG.replace(old, new))
    return ["fit", str(place / name)]


MISTAKES = {
    "no config": (lambda p: ["fit", str(p / "confg.toml")], "mxlogit init DATA"),
    "no toml": (lambda p: written(p, "a.toml", "[model]", "[model"), "not valid TOML"),
    "unknown section": (lambda p: written(p, "b.toml", "[engine]", "[engin]"), "Did you mean 'engine'"),
    "unknown entry": (lambda p: written(p, "c.toml", "fixed =", "fixd ="), "Did you mean 'fixed'"),
    "no data file": (lambda p: written(p, "d.toml", "choices.csv", "choice.csv"), "there is no data file"),
    "no file entry": (lambda p: written(p, "e.toml", 'file = "choices.csv"', ""), "names no data"),
    "unknown column": (lambda p: written(p, "f.toml", '["x"]', '["xx"]'), "no column 'xx'"),
    "unknown distribution": (lambda p: written(p, "g.toml", "negative_lognormal", "lognormel"), "Did you mean"),
    "unknown setting": (lambda p: written(p, "h.toml", "n_samples", "samples"), "has no setting 'samples'"),
    "wrong kind of setting": (lambda p: written(p, "i.toml", "n_samples = 300", 'n_samples = "many"'), "n_samples"),
    "wrong question": (lambda p: written(p, "j.toml", '["cost"]', '"cost"'), "must be a list of columns"),
    "wrong pair": (lambda p: written(p, "k.toml", "attribute =", "attr ="), "must be a list such as"),
    "wrong interval": (lambda p: written(p, "l.toml", "interval = 0.9", "interval = 90"), "interval must be"),
    "a folder as data": (lambda p: written(p, "m.toml", '"choices.csv"', '"."'), "there is no data file"),
    "another format": (lambda p: written(p, "n.toml", '"choices.csv"', '"config.toml"'), "must end in one of"),
    "no model": (lambda p: ["predict", str(p), str(p / "choices.csv")], "holds no saved model"),
    "no data to predict": (lambda p: ["predict", str(p / "found/model"), "none.csv"], "there is no data file"),
    "unknown attribute": (lambda p: ["wtp", str(p / "found/model"), "zz", "cost"], "no coefficients"),
    "one model": (lambda p: ["compare", str(p / "found/model")], "at least two models"),
    "the same model": (lambda p: ["compare", *2 * [str(p / "found/model")]], "given twice"),
    "no folder": (lambda p: ["wtp", str(p / "found/model"), "z", "cost", "--out", "no/where.csv"], "no folder 'no'"),
    "there already": (lambda p: ["init", str(p / "choices.csv"), "--out", str(p / "config.toml")], "is there already"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes_are_one_sentence(place, fitted, capsys, mistake):
    arguments, words = MISTAKES[mistake]
    assert main(arguments(place)) == 1
    err = capsys.readouterr().err
    assert err.startswith("mxlogit: ")
    assert words in err
    assert "Traceback" not in err


def test_the_installed_command_tells_mistakes_without_a_traceback(tmp_path):
    command = [sys.executable, "-c", "import sys; from mxlogit.cli import main; sys.exit(main(sys.argv[1:]))"]
    done = subprocess.run([*command, "fit", str(tmp_path / "no.toml")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    usage = subprocess.run([*command, "fti"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
