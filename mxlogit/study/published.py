"""What Rodrigues (2022) published of the simulation study, to lay results beside."""

from __future__ import annotations

import json
from importlib.resources import files

import pandas as pd

from mxlogit.study.runner import summarise

ERRORS = ["rmse_alpha", "rmse_zeta", "rmse_omega", "rmse_beta_n"]


def published_results() -> pd.DataFrame:
    """Means over the 30 published runs; index: (people, method). Columns: seconds and root-mean-square errors.

    The row "attainable" is the asymptotic error of maximum likelihood at the truth; for tastes of people that of their
    posterior means at the true parameters.
    """
    content = json.loads(files("mxlogit.study").joinpath("published.json").read_text())
    rows = [*content["records"], *({"method": "attainable", **row} for row in content["attainable"])]
    table = pd.DataFrame(rows).rename(columns={"N": "people", "time_s": "seconds"})
    return (
        table.set_index(["people", "method"])[["seconds", *ERRORS]]
        .astype(float)
        .sort_index(level=0, sort_remaining=False)
    )


def beside_published(
    table: pd.DataFrame, methods: tuple[str, ...] = ("MSLE", "Gibbs", "AVI v2-d", "AVI v2-e")
) -> pd.DataFrame:
    """Means of a published-design study (`run_study`) with their standard errors, beside published ones.

    Index: (people, method). Columns: ``runs``, ``seconds`` (medians; published: means, on other machines), errors and
    standard errors of their means; published methods, named "published ...", and the attainable error have no standard
    errors.
    """
    own = summarise(table)
    columns = ["runs", "seconds", *(part for name in ERRORS for part in (name, f"{name}_se"))]
    known = published_results()
    sizes = list(dict.fromkeys(own.index.get_level_values("people")))
    parts = []
    for size in sizes:
        parts.append(own.loc[[size]].reindex(columns=columns))
        if size in known.index.get_level_values(0):
            there = known.loc[size]
            there = there.loc[[name for name in (*methods, "attainable") if name in there.index]]
            there.index = [name if name == "attainable" else f"published {name}" for name in there.index]
            parts.append(pd.concat({size: there}, names=["people", "method"]).reindex(columns=columns))
    return pd.concat(parts)
