"""The demo, as a newcomer runs it."""

import functools

import pytest

from mxlogit import VI, MixedLogit, cli
from mxlogit.cli import main


@pytest.mark.parametrize("samples", [20, pytest.param(4_000, marks=pytest.mark.slow)])
def test_demo_prints_and_draws(samples, tmp_path, capsys, monkeypatch):
    """Tables average over fewer posterior samples than a newcomer's."""
    monkeypatch.setattr(cli, "MixedLogit", functools.partial(MixedLogit, method=VI(n_samples=samples, flow=None)))
    picture = tmp_path / "demo.png"
    assert main(["demo", "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    for words in ("361 decision makers", "cor.tod:seas", "Converged", "Tastes of three people", "observed"):
        assert words in text
    assert picture.stat().st_size > 20_000


def test_demo_that_cannot_write_says_so(tmp_path, capsys):
    assert main(["demo", "--picture", str(tmp_path / "no" / "folder.png")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["dmeo"])
    assert "invalid choice" in capsys.readouterr().err
