"""Published results of the simulation study of Rodrigues (2022), for comparison."""

from __future__ import annotations

import json
from importlib.resources import files

import pandas as pd

from mxlogit.study.runner import summarise

# Root-mean-square errors that were published.
ERRORS = ["rmse_alpha", "rmse_zeta", "rmse_omega", "rmse_beta_n"]


def published_results() -> pd.DataFrame:
    """Means over the 30 published runs, by (people, method): seconds and root-mean-square errors.

    The row "attainable" has the asymptotic errors of maximum likelihood at the truth and, for tastes of people, the
    error of their posterior means at the true parameters.
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
    """Table of the results of a study of the published design (`run_study`) and of published results.

    Index: (people, method), with published methods named "published ...". Columns: ``runs``, ``seconds`` (medians;
    published: means, on other machines), mean errors and their standard errors, which published methods and the
    attainable errors do not have.
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
