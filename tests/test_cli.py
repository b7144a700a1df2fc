"""The demo, as a newcomer runs it."""

import pytest

from mxlogit.cli import main


def test_demo_prints_and_draws(tmp_path, capsys):
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
