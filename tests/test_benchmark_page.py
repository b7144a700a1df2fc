"""Measured figures: the page is what the files give, each file says where it comes from, wrong files are told in a sentence."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import make_page
import measurement
import numpy as np
import pytest
import recording

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "benchmarks"
FILES = sorted(RESULTS.glob("*.json"))
GOOD = {
    "title": "Speed",
    "introduction": ["Two lines", "of text."],
    "command": "python tests/benchmarks/bench_main.py",
    "version": "mxlogit 0.1.0",
    "machine": "a processor, 2 cores",
    "threads": 1,
    "date": "2026-11-29",
    "tables": [{"name": "fits", "columns": ["n", "seconds"], "rows": [[1_000, 0.12345], ["all", None]]}],
}


def write(folder, text, name="speed.json"):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def run_make_page(*options):
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "make_page.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_page_is_what_the_files_give():
    assert (ROOT / "docs" / "benchmarks.md").read_text() == make_page.make_page(RESULTS)


def test_order_names_every_file():
    """A file that was lost would take its section with it, unseen."""
    assert {path.stem for path in FILES} >= set(make_page.ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_says_where_it_comes_from(path):
    found = measurement.read_measurement(path)
    assert all(found.command)
    assert all((found.version, found.machine, found.date, str(found.threads)))
    assert found.tables or found.notes
    assert path.read_text() == measurement.to_json(found)
    assert "/home" not in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "benchmarks").glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_benchmark_records_its_results(path):
    """By the one function, whose files the page reads."""
    text = path.read_text()
    assert "record_results(options.json" in text
    assert "json.write_text" not in text


def test_edited_page_is_noticed_and_mended(tmp_path):
    write(tmp_path, GOOD)
    page = tmp_path / "page.md"
    options = ("--results", tmp_path, "--page", page)
    assert run_make_page(*options).returncode == 0
    assert run_make_page(*options, "--check").returncode == 0
    text = page.read_text()
    assert "| 1,000 | 0.123 |\n| all | |" in text
    page.write_text(text.replace("0.123", "0.122"))
    done = run_make_page(*options, "--check")
    assert done.returncode == 1
    assert "page.md differs from the files" in done.stdout


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


def with_table(**changes):
    return GOOD | {"tables": [GOOD["tables"][0] | changes]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ('{"title": NaN}', "NaN is no JSON number"),
        ([], "must hold one object with the fields title"),
        (without("date"), "it lacks 'date'"),
        (without("machine"), "it lacks 'machine'"),
        (GOOD | {"hostname": "x"}, "unknown 'hostname' (known: title"),
        (GOOD | {"version": ""}, "'version' is empty (where it is not known, write \"not recorded\")"),
        (GOOD | {"command": [1]}, "'command' must be a string or a list of strings"),
        (GOOD | {"threads": None}, "'threads' must be a whole number or a string"),
        (GOOD | {"date": "29.11.2026"}, "'date' is '29.11.2026', not YYYY-MM-DD"),
        (GOOD | {"tables": {}}, "'tables' must be a list"),
        (GOOD | {"tables": [3]}, "table 1 must be an object with the fields name"),
        (with_table(rows=[[1]]), "table 'fits': row 1 has 1 instead of 2 cells"),
        (with_table(rows=[[1, []]]), "row 1 has a cell that is no number"),
        (with_table(rows=3), "'rows' must be a list of lists"),
        (with_table(columns="n"), "'columns' must be a list of strings"),
        (with_table(align=["left"]), "'align' must have"),
        (with_table(align=[["left"], "left"]), "'align' must have"),
        (with_table(formats={"n": "xyz"}), "'formats' has 'xyz'"),
        (with_table(formats={"speed": ".1f"}), "'formats' must be an object whose names are columns"),
        (with_table(shown=1), "'shown' must be true or false"),
        (with_table(name=3), "'name' and 'introduction' must be strings"),
    ],
)
def test_wrong_file_is_told_in_a_sentence(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(measurement.MeasurementError) as caught:
        measurement.read_measurement(path)
    message = str(caught.value)
    assert message.startswith("speed.json")
    assert words in message
    assert message.endswith(".")
    assert "\n" not in message


def test_command_ends_with_the_sentence(tmp_path):
    """No traceback, and nothing written."""
    write(tmp_path, without("command"))
    done = run_make_page("--results", tmp_path, "--page", tmp_path / "page.md")
    assert done.returncode == 2
    assert done.stderr == "speed.json: it lacks 'command'.\n"
    assert not (tmp_path / "page.md").exists()


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(measurement.MeasurementError, match="it lacks 'date'; 'title' is empty"):
        measurement.read_measurement(write(tmp_path, without("date") | {"title": ""}))


def test_no_files(tmp_path):
    with pytest.raises(measurement.MeasurementError, match="There are no files of results"):
        make_page.make_page(tmp_path)


def test_recorded_results_are_read(tmp_path, monkeypatch):
    """What a benchmark writes becomes a section; a rerun keeps title and introduction, not the notes."""
    path = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["/somewhere/bench_x.py", "fit", "--json", str(path), "--seeds", "2"])
    rows = [{"seed": s, "engine": e, "seconds": np.float64(s), "n": 7} for s in (1, 2, 3) for e in ("b", "a")]
    tables = recording.medians_of("fits", rows, ["engine"], drop=("seed",))
    recording.record_results(path, "Speed", tables, threads=1)
    found = measurement.read_measurement(path)
    assert found.title == "Speed"
    assert found.command == ["python tests/benchmarks/bench_x.py fit --seeds 2"]
    assert found.date == date.today().isoformat()
    assert "torch" in found.version
    assert "cores" in found.machine
    assert found.tables[0].rows == [["b", 3, 2.0, 7.0], ["a", 3, 2.0, 7.0]]
    assert not found.tables[1].shown
    assert str(tmp_path) not in path.read_text()
    page = make_page.make_page(tmp_path)
    assert "| engine | runs | seconds | n |\n|---|---:|---:|---:|\n| b | 3 | 2 | 7 |" in page
    assert "fits, runs" not in page
    measurement.write_measurement(path, replace(found, introduction="Design.", notes="It was 2 s.", title="Ours"))
    recording.record_results(path, "Speed", tables[:1], threads=1)
    again = measurement.read_measurement(path)
    assert (again.title, again.introduction, again.notes) == ("Ours", "Design.", "")


def test_a_file_that_cannot_be_read_does_not_cost_the_results(tmp_path):
    path = write(tmp_path, "{")
    recording.record_results(path, "Speed", recording.ranges_of("fits", [{"a": 1.0}, {"a": 3.0}]), threads=1)
    assert measurement.read_measurement(path).tables[0].rows == [["a", 1.0, 2.0, 3.0]]


def test_rhat_has_three_decimals():
    table = recording.table_of("chains", [{"seconds": 2.345, "rhat": 1.0041}, {"seconds": 3}], {"seconds": ".1f"})
    assert table.formats == {"rhat": ".3f", "seconds": ".1f"}
    assert make_page.markdown_table(table).splitlines()[2:] == ["| 2.3 | 1.004 |", "| 3.0 | |"]


def test_cells():
    values = [np.float32(0.5), np.int64(3), np.nan, np.inf, -np.inf, np.True_, "a", None]
    assert [recording.to_cell(value) for value in values] == [0.5, 3, None, "infinite", "-infinite", True, "a", None]
    shown = [make_page.show(cell) for cell in (12_345, 1_234.6, 0.00012345, True, None, "a | b", 0.5)]
    assert shown == ["12,345", "1,235", "0.000123", "yes", "", "a \\| b", "0.5"]
    assert make_page.show(-3952.487731, ".5f") == "-3952.48773"
