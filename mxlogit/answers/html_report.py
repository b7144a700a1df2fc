"""One self-contained HTML page of a fit: tables, diagnostics in words, pictures."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from mxlogit.errors import ConvergenceWarning, MissingExtraError, SpecificationError

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #111; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #bbb; }
.sub { color: #555; margin-top: .2rem; }
.verdict { padding: .6rem .9rem; border-left: 4px solid #555; background: #f3f3f3; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: .6rem 0; }
th, td { padding: .18rem .7rem; text-align: right; }
thead th { border-bottom: 1px solid #111; border-top: 1px solid #111; }
tbody th { text-align: left; font-weight: normal; } tbody tr:last-child > * { border-bottom: 1px solid #111; }
img { max-width: 100%; } .note { color: #555; font-size: .9rem; } .wide { overflow-x: auto; }
</style></head><body>
<h1>{{ title }}</h1><p class="sub">{{ subtitle }}</p>
{% for sentence in verdicts %}<p class="verdict">{{ sentence }}</p>{% endfor %}
{% for section in sections %}<h2>{{ section.title }}</h2>
{% if section.note %}<p class="note">{{ section.note }}</p>{% endif %}
{% if section.table %}<div class="wide">{{ section.table | safe }}</div>{% endif %}
{% if section.picture %}<img alt="{{ section.title }}" src="data:image/png;base64,{{ section.picture }}">{% endif %}
{% endfor %}
<p class="note">mxlogit {{ version }}, {{ date }}.</p></body></html>
"""
# Numbers of the diagnostics that are shown.
_SHOWN = {
    "log_likelihood": "log likelihood at the estimate",
    "log_likelihood_error": "its Monte Carlo standard error",
    "pareto_k": "Pareto k of the posterior's weights",
    "ess": "effective share of the draws of tastes",
    "rhat": "largest R-hat",
    "ess_bulk": "smallest bulk effective sample size",
    "draws": "draws per person",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Section:
    """A heading with a note, a table as HTML and a picture as text."""

    title: str
    note: str = ""
    table: str = ""
    picture: str = ""


def write_report(est: Any, path: str | Path, sections: Sequence[Section]) -> None:
    """Write a page about a fitted estimator.

    Raises
    ------
    SpecificationError
        If the file cannot be written.
    MissingExtraError
        If jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("reports need jinja2: pip install jinja2.") from None
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        title="Mixed logit",
        subtitle=f"{est.n_decision_makers_:,} decision makers, {est.n_situations_:,} choice situations; "
        f"{_engine(est)}.",
        verdicts=verdicts(est),
        sections=[*_standard_sections(est), *sections],
        version=version("mxlogit"),
        date=date.today().isoformat(),
    )
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as trouble:
        raise SpecificationError(f"the report cannot be written: {trouble}.") from None


def _engine(est: Any) -> str:
    kinds = {"posterior": "estimates are posterior means", "sampling distribution": "maximum simulated likelihood"}
    return kinds[est.result_.samples.kind]


def verdicts(est: Any) -> list[str]:
    """Sentences about whether the fit can be relied on."""
    found = [str(est.diagnostics_["status"])]
    if "trust" in est.diagnostics_:
        found.append(str(est.diagnostics_["trust"]))
    return [*found, *map(str, est.result_.warnings)]


def _standard_sections(est: Any) -> list[Section]:
    from mxlogit import plots

    numbers = {words: est.diagnostics_[name] for name, words in _SHOWN.items() if _is_number(est.diagnostics_, name)}
    found = [
        Section("Estimates", "Standard deviations and correlations are of the latent normals.", to_html(est.summary()))
    ]
    if est._state().model.space.n_random:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            tastes = est.taste_distribution()
        note = "Means and standard deviations in the population; a lognormal is shown as the taste itself."
        note = " ".join([note, *(str(warning.message) for warning in caught)])
        found.append(Section("Tastes", note, to_html(tastes), _try(plots.plot_taste_distributions, est)))
    if est._state().model.has_classes:
        note = "Shares among the people of the fit, and mean coefficients of the members of each class."
        found.append(Section("Classes", note, to_html(est.class_tastes()), _try(plots.plot_classes, est)))
    elif est._state().model.space.pairs:
        found.append(Section("Correlations", picture=_try(plots.plot_correlations, est)))
    table = pd.Series(numbers, name="value").to_frame().rename_axis("diagnostic")
    found.append(Section("Diagnostics", table=to_html(table), picture=_try(plots.plot_convergence, est)))
    return found


def _is_number(diagnostics: dict[str, Any], name: str) -> bool:
    value = diagnostics.get(name)
    return isinstance(value, (int, float)) and value == value


def willingness_section(est: Any, attribute: str, cost: str) -> Section:
    """Willingness to pay for an attribute, as table and picture."""
    from mxlogit import plots

    table = est.wtp(attribute, cost)
    title = f"Willingness to pay for {attribute}, in units of {cost}"
    picture = _try(plots.plot_willingness_to_pay, est, attribute, cost)
    return Section(title, table.attrs["verdict"], to_html(table), picture)


def elasticity_section(est: Any, X: Any, attribute: str) -> Section:
    """Elasticities to an attribute, as table and picture."""
    from mxlogit import plots

    picture = _try(plots.plot_elasticities, est, X, attribute)
    note = "Elasticities of predicted shares: per cent per per cent."
    return Section(f"Elasticities to {attribute}", note, to_html(est.elasticities(X, attribute)), picture)


def share_section(est: Any, X: Any) -> Section:
    """Predicted shares as a table."""
    return Section("Predicted shares", table=to_html(est.shares(X, interval=0.95)))


def to_html(frame: pd.DataFrame) -> str:
    """Table of a frame with four significant digits, escaped."""
    text: str = frame.to_html(
        float_format=lambda value: f"{value:.4g}", border=0, na_rep="", index_names=frame.index.nlevels > 1
    )
    return text


def _try(draw: Callable[..., Any], *arguments: Any) -> str:
    """Picture as text; empty without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        return ""
    from matplotlib import pyplot

    axes = draw(*arguments)
    figure = (axes.ravel()[0] if hasattr(axes, "ravel") else axes).figure
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    pyplot.close(figure)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
