"""The plan of the house: what may stand at top level, and imports that never lead back."""

from pathlib import Path

import grimp
import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

import mxlogit

ROOMS = {
    "answers",
    "choices",
    "cli",
    "diagnostics",
    "draws",
    "execution",
    "guide",
    "inference",
    "integration",
    "model",
    "optim",
    "plots",
    "postestimation",
    "results",
    "sampling",
    "spec",
    "study",
}
# What a user imports and what all rooms share, ten at most.
MODULES = {
    "datasets",
    "errors",
    "estimator",
    "fit",
    "reading",
    "request",
    "saved_models",
    "simulate",
}


@pytest.fixture(scope="module")
def imports():
    """All imports, those of type checking and inside of functions among them, (importer, imported)."""
    graph = grimp.build_graph("mxlogit", cache_dir=None)
    return [(m, d) for m in graph.modules for d in graph.find_modules_directly_imported_by(m)]


def cycles(pairs):
    """Sets of names that lead back to themselves."""
    names = sorted({name for pair in pairs for name in pair})
    place = {name: i for i, name in enumerate(names)}
    rows, columns = np.array([[place[a], place[b]] for a, b in pairs]).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
    _, group = connected_components(graph, directed=True, connection="strong")
    found = [{names[i] for i in np.flatnonzero(group == g)} for g in np.unique(group)]
    return [members for members in found if len(members) > 1]


def test_nothing_else_stands_at_top_level():
    home = Path(mxlogit.__file__).parent
    assert {path.name for path in home.iterdir() if (path / "__init__.py").exists()} == ROOMS
    assert {path.stem for path in home.glob("*.py")} - {"__init__"} == MODULES
    assert len(MODULES) <= 10


def test_files_import_each_other_in_one_direction(imports):
    assert not cycles(imports)


def test_folders_import_each_other_in_one_direction(imports):
    folders = [tuple(name.split(".")[1] if "." in name else name for name in pair) for pair in imports]
    assert not cycles([(a, b) for a, b in folders if a != b])
