"""The demo, as a newcomer runs it."""

import functools

import pytest

from mxlogit import VI, MixedLogit
from mxlogit.cli import demo, main


@pytest.mark.parametrize(
    "method", [VI(n_samples=20, flow=None), pytest.param(VI(), marks=pytest.mark.slow)], ids=["quick", "as it is"]
)
def test_demo_prints_and_draws(method, tmp_path, capsys, monkeypatch):
    """By default tables average over fewer posterior samples than a newcomer's, and no flow is trained."""
    monkeypatch.setattr(demo, "MixedLogit", functools.partial(MixedLogit, method=method))
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
