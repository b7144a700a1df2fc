"""Tutorials run on small data and end in assertions; tables of measurements are those of the result files; links lead somewhere."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mxlogit import MCMC, VI

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FIGURES = (ROOT / "docs" / "benchmarks.md").read_text()
TEXTS = README + FIGURES
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "MXLOGIT_SMOKE": "1"}


def run(command, environment=ENVIRONMENT, folder=ROOT):
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}"
    return done.stdout


def test_there_are_ten():
    assert [int(path.name[:2]) for path in TUTORIALS] == list(range(1, 11))


# What tutorials do on small data, and less at which their assertions hold as well.
SMALLER = {
    "01_first_model": {"random_state=0)": "random_state=0, method=VI(correct=False, n_samples=30))"},
    "02_reading_the_output": {
        "200 if SMOKE": "100 if SMOKE",
        "300 if SMOKE": "150 if SMOKE",
        "said = fit(frame)": "said = fit(frame, method=VI(flow=None))",
        "fit(single)": "fit(single, method=VI(correct=False, flow=None))",
        "fit(few)": "fit(few, method=VI(correct=False, flow=None))",
        "fit(few, priors": "fit(few, method=VI(correct=False, flow=None), priors",
    },
    "03_vi_msle_mcmc": {
        '"id"] <= 60': '"id"] <= 40',
        "MCMC(warmup=150, samples=200)": "MCMC(warmup=40, samples=40)",
        'alternative="alt", random_state=0)': 'alternative="alt", random_state=0, method=VI(n_samples=20))',
        "[VI(), ": "[VI(n_samples=20), ",
    },
    "04_published_study": {'["vi", "vi_uncorrected"]': '{"vi": VI(correct=False, n_samples=30)}'},
    "05_individual_tastes": {
        "200 if SMOKE": "120 if SMOKE",
        "random_state=0)": "random_state=0, method=VI(correct=False, n_samples=16))",
    },
    "06_flows_sbp_second_order": {
        "datasets.load_electricity()": "datasets.load_electricity().query('id <= 70')",
        "simulate_choices(64, 64, 4,": "simulate_choices(24, 32, 4,",
        "batch_size=32": "batch_size=16",
        "steps=40 if SMOKE": "steps=20 if SMOKE",
    },
    # Two processes start in `test_team.py`.
    "07_large_data": {
        "VI(checkpoint=": "VI(correct=False, checkpoint=",
        "import MixedLogit, PackedChoices": "import VI, MixedLogit, PackedChoices",
        "{names}, random_state=0)": "{names}, random_state=0, method=VI(correct=False))",
        "world_size=2": "world_size=1",
        "for rank in range(2)": "for rank in range(1)",
        "ended == [0, 0]": "ended == [0]",
    },
    "09_transport_appraisal": {
        "unique()[:120]": "unique()[:30]",
        "from mxlogit import MixedLogit,": "from mxlogit import VI, MixedLogit,",
        "random_state=0, **columns)": "random_state=0, method=VI(correct=False, flow=None, n_samples=400), **columns)",
    },
    "08_coming_from": {
        '"id"] <= 100': '"id"] <= 60',
        'alternative="alt", random_state=0)': 'alternative="alt", random_state=0, method=VI(correct=False, flow=None))',
    },
}


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_on_small_data(script, monkeypatch):
    """In this process; the slow test gives each one of its own."""
    code = script.read_text()
    assert re.search(r"^assert ", code, re.MULTILINE)
    for written, small in SMALLER.get(script.stem, {}).items():
        assert written in code
        code = code.replace(written, small)
    for name in ("MPLBACKEND", "MXLOGIT_SMOKE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, str(script), "exec"), {"__name__": "__main__", "__file__": str(script), "VI": VI})


@pytest.mark.slow
@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(script):
    run([sys.executable, str(script)], {**ENVIRONMENT, "MXLOGIT_SMOKE": "0", "OMP_NUM_THREADS": "2"})


def test_tables_are_those_of_the_result_files(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check"])
    assert runpy.run_path(str(ROOT / "tutorials" / "results" / "make_tables.py"))["main"]() == 0
    assert "as the files give" in capsys.readouterr().out


def test_a_table_that_was_edited_is_noticed(tmp_path, monkeypatch, capsys):
    """The same script on a copy in which one digit differs, in this process."""
    results, record = tmp_path / "tutorials" / "results", tmp_path / "docs" / "benchmarks" / "published_study.json"
    for folder in (results, record.parent):
        folder.mkdir(parents=True)
    for path in (ROOT / "tutorials" / "results").glob("*"):
        if path.suffix in (".csv", ".json", ".py"):
            (results / path.name).write_bytes(path.read_bytes())
    text = (ROOT / record.relative_to(tmp_path)).read_text()
    place = text.index(".", text.index('"rows"'))
    digit = str((int(text[place + 1]) + 1) % 10)
    record.write_text(text[: place + 1] + digit + text[place + 2 :])
    monkeypatch.setattr(sys, "path", [*sys.path])
    script = runpy.run_path(str(results / "make_tables.py"))
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check"])
    assert script["main"]() == 1
    assert "differs" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["make_tables.py"])
    assert script["main"]() == 0
    assert record.read_text() == text


def test_links_lead_somewhere():
    """Relative links and paths in backticks exist; there are no others to check."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    elsewhere = re.findall(r"\]\(([^)#]+)\)", FIGURES)
    missing += [link for link in elsewhere if "://" not in link and not (ROOT / "docs" / link).exists()]
    named = re.findall(r"`((?:tests|tutorials|docs|data)/[\w./]+\.(?:py|md|csv|txt))", TEXTS)
    missing += [path for path in named if not (ROOT / path).exists()]
    assert links
    assert named
    assert not missing


def scripts_of_readme():
    """Python scripts that commands of the README run, with their cases."""
    found = re.findall(r"(tests/benchmarks/\w+\.py|`bench_\w+\.py)((?: [\w-]+)*)", TEXTS)
    return sorted({(script.strip("`").split("/")[-1], tuple(cases.split())) for script, cases in found})


@pytest.mark.parametrize(("script", "cases"), scripts_of_readme())
def test_benchmarks_of_the_readme_have_their_cases(script, cases):
    path = ROOT / "tests" / "benchmarks" / script
    text = path.read_text()
    assert path.exists()
    for case in cases:
        assert case.startswith("--") or case.isdigit() or case in text, case


def commands_of_readme():
    """Commands of the package in the README."""
    return sorted(set(re.findall(r"`(mxlogit study [^`]+)`", TEXTS)))


@pytest.mark.parametrize("command", commands_of_readme())
def test_commands_of_the_readme_are_understood(command, tmp_path, monkeypatch):
    """Down to their settings, which are then made small."""
    from mxlogit import cli

    seen = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_study_command", lambda options: seen.update(vars(options)))
    arguments = shlex.split(command)[1:]
    assert cli.main(arguments) == 0
    assert seen["design"] == arguments[1]


def python_blocks():
    """Blocks of Python that need neither files nor a process group."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return [block for block in blocks if "choices/" not in block and "torch.distributed" not in block]


@pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
def test_python_of_the_readme_runs():
    """All in one namespace, as a reader types them; on some people, against short chains."""
    code = "\n".join(python_blocks())
    smaller = {
        "datasets.load_electricity()": "datasets.load_electricity().query('id <= 60')",
        "random_state=0\n": "random_state=0, method=VI(n_samples=40)\n",
        "compare_with_mcmc(est, df)": "compare_with_mcmc(est, df, MCMC(warmup=60, samples=60))",
    }
    for written, small in smaller.items():
        assert written in code
        code = code.replace(written, small)
    namespace = {"MCMC": MCMC, "VI": VI, "print": lambda *words: None}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["est"].coef_["pf"] < 0
    assert "mcmc" in namespace["compared"].verdict
