"""Versions: one number everywhere, and one command that changes it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mxlogit

HOME = Path(__file__).parent.parent
FILES = ("pyproject.toml", "mxlogit/__init__.py", "CHANGELOG.md")


def release(folder, *arguments):
    command = [sys.executable, HOME / ".ci" / "release", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path):
    if not (HOME / ".ci" / "release").exists():
        pytest.skip("no checkout")
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HOME / name, tmp_path / name)
    return tmp_path


def test_the_version_is_the_same_everywhere():
    assert f'version = "{mxlogit.__version__}"' in (HOME / "pyproject.toml").read_text()
    first = re.search(r"^## (\S+)", (HOME / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == mxlogit.__version__


def test_one_command_changes_it(checkout):
    assert release(checkout, "0.2.0", "2027-01-31").returncode == 0
    texts = [(checkout / name).read_text() for name in FILES]
    assert 'version = "0.2.0"' in texts[0]
    assert '__version__ = "0.2.0"' in texts[1]
    assert "## 0.2.0 - 2027-01-31\n" in texts[2]


@pytest.mark.parametrize("arguments", [(), ("0.2",), ("0.2.0", "tomorrow")])
def test_wrong_arguments_change_nothing(checkout, arguments):
    before = [(checkout / name).read_text() for name in FILES]
    assert release(checkout, *arguments).returncode != 0
    assert [(checkout / name).read_text() for name in FILES] == before
