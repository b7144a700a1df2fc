"""The documentation points at things that exist: files, sections that are included, names of the API pages."""

import importlib
import re
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
PAGES = sorted([*HOME.glob("*.md"), *HOME.glob("docs/**/*.md"), *HOME.glob("tutorials/**/*.md")])


def title(path: Path) -> str:
    return str(path.relative_to(HOME))


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_and_included_sections_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target
    for target, options in re.findall(r"```\{include\} (\S+)\n(.*?)```", text, re.DOTALL):
        included = (page.parent / target).read_text()
        for marker in re.findall(r':\S+: "(.+)"', options):
            assert marker in included, marker


@pytest.mark.parametrize("page", sorted(HOME.glob("docs/**/*.md")), ids=title)
def test_documented_names_exist(page):
    text, module = page.read_text(), "mxlogit"
    for directive, name in re.findall(r"\.\. (currentmodule|autoclass|autofunction)::? (\S+)", text):
        if directive == "currentmodule":
            module = name
            importlib.import_module(module)
            continue
        place, _, last = (name if name.startswith("mxlogit.") else f"{module}.{name}").rpartition(".")
        assert hasattr(importlib.import_module(place), last), name


def test_settings_of_engines_in_the_readme_are_real():
    """``VI(max_seconds=...)`` and the like: every keyword of a public class or function that prose names."""
    import mxlogit

    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for name, keyword in re.findall(r"\b([A-Z][A-Za-z]+)\((\w+)=", page.read_text()):
            public = getattr(mxlogit, name, None)
            if public is not None:
                assert keyword in public.__init__.__code__.co_varnames, f"{title(page)}: {name}({keyword}=)"
