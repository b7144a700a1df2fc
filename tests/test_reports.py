"""Reports, plots, tables and samples for arviz: whole, labelled, readable, and honest about what they cannot do."""

import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from mxlogit import MCMC, MSLE, VI, ConvergenceWarning, MissingExtraError, MixedLogit, SpecificationError, render_table
from mxlogit.simulate import simulate_choices

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
# Least number of bytes of a picture that is not empty.
DRAWN = 4_000


@pytest.fixture(scope="module")
def frame():
    random = {"z": (0.7, 0.9), "cost": (-0.5, 0.4, "negative_lognormal")}
    return simulate_choices(60, 5, 3, fixed={"x": -0.6}, random=random, random_state=2)[0]


def fit(frame, method, **options):
    request = {"fixed": ["x"], "random": {"z": "normal", "cost": "negative_lognormal"}, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MixedLogit(method=method, random_state=1, **request).fit(frame)


@pytest.fixture(scope="module")
def est(frame):
    return fit(frame, VI(n_samples=300, correct=False))


class Page(HTMLParser):
    """Headings, tables, pictures and links of a page, with a check that elements close."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.headings, self.tables, self.pictures, self.outside = [], [], 0, [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.tables += tag == "table"
        if tag == "img":
            self.pictures.append(attributes["src"])
        self.outside += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_a_report_is_one_page_of_tables_and_pictures(est, frame, tmp_path):
    path = tmp_path / "report.html"
    est.report(path, X=frame, wtp=[("z", "cost")], elasticities=["cost"])
    text, page = path.read_text(encoding="utf-8"), Page()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert page.tables == 6
    assert len(page.pictures) == 5
    assert all(len(picture) > DRAWN for picture in page.pictures)
    for words in ("Estimates", "Correlations", "Willingness to pay for z, in units of cost", "Elasticities to cost"):
        assert words in page.headings
    assert est.diagnostics_["status"].split(":")[0] in text
    assert "keeps away from zero" in text


def test_a_report_escapes_names(frame, tmp_path):
    some = frame.rename(columns={"z": "<b>z & co"})
    est = fit(some, MSLE(n_draws=50, check_draws=False), random=["<b>z & co"])
    est.report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;z &amp; co" in text
    assert "<b>" not in text


def test_a_report_without_matplotlib_has_no_pictures(est, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    est.report(tmp_path / "report.html")
    assert "<img" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_mistakes(est, frame, tmp_path):
    with pytest.raises(SpecificationError, match="need choice situations"):
        est.report(tmp_path / "report.html", elasticities=["cost"])
    with pytest.raises(SpecificationError, match="there is no folder"):
        est.report(tmp_path / "no" / "report.html")
    with pytest.raises(SpecificationError, match="no coefficient"):
        est.report(tmp_path / "report.html", X=frame, elasticities=["costs"])
    assert not (tmp_path / "report.html").exists()


def draw(name, est, frame):
    from mxlogit import plots

    arguments = {
        "plot_willingness_to_pay": ("z", "cost"),
        "plot_elasticities": (frame, "cost"),
        "plot_price_curve": (frame, "cost", "a1"),
        "plot_individual_tastes": ("z",),
        "plot_shrinkage": ("z",),
    }
    return getattr(plots, name)(est, *arguments.get(name, ()))


PLOTS = [
    "plot_taste_distributions",
    "plot_correlations",
    "plot_willingness_to_pay",
    "plot_elasticities",
    "plot_price_curve",
    "plot_convergence",
    "plot_individual_tastes",
    "plot_shrinkage",
]


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_labelled_grey_and_not_empty(est, frame, tmp_path, name):
    from matplotlib import image, pyplot

    axes = np.atleast_1d(draw(name, est, frame))
    for ax in axes:
        assert ax.get_xlabel() or ax.get_xticklabels()[0].get_text()
        assert ax.get_ylabel() or ax.get_yticklabels()[0].get_text()
    axes[0].figure.savefig(tmp_path / "plot.png")
    pyplot.close(axes[0].figure)
    pixels = image.imread(tmp_path / "plot.png")[..., :3]
    assert np.ptp(pixels, axis=-1).max() < 0.02
    assert 0.01 < (pixels < 0.5).mean() < 0.5


def test_plots_of_chains_and_of_what_is_not_there(frame):
    from mxlogit import plots

    chains = fit(frame, MCMC(warmup=20, samples=30))
    assert plots.plot_convergence(chains).get_xlabel()
    logit = fit(frame, "msle", fixed=["x", "cost"], random=[])
    for name in ("plot_correlations", "plot_taste_distributions", "plot_shrinkage"):
        with pytest.raises(SpecificationError, match=r"no correlations|no random"):
            draw(name, logit, frame)
    with pytest.raises(SpecificationError, match="no alternative 'a9'"):
        plots.plot_price_curve(logit, frame, "cost", "a9")


def test_tables_in_every_form(est):
    table = est.summary()
    text, markdown, latex, html = (
        render_table(table, form, digits=2) for form in ("text", "markdown", "latex", "html")
    )
    value = f"{table.loc['z', 'estimate']:.2f}"
    assert all(value in form for form in (text, markdown, latex, html))
    assert markdown.splitlines()[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert len({line.count("|") for line in markdown.splitlines()}) == 1
    assert latex.startswith(r"\begin{tabular}{lrrrr}")
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"std\_error"))
    assert latex.count(r"\\") == len(table) + 1
    with pytest.raises(SpecificationError, match="form must be"):
        render_table(table, "word")


def test_missing_numbers_and_several_keys_in_tables():
    index = pd.MultiIndex.from_tuples([("a|b", 1), ("c%", 2)], names=["name", None])
    frame = pd.DataFrame({"x": [1.0, np.nan], "n": [3, 4]}, index=index)
    assert render_table(frame, "markdown", 1).splitlines()[2] == r"| a\|b | 1 | 1.0 | 3 |"
    assert render_table(frame, "latex", 1).splitlines()[-2] == r"\bottomrule"
    assert r"c\% & 2 &  & 4 \\" in render_table(frame, "latex", 1)


def test_samples_for_arviz(est, frame):
    arviz = pytest.importorskip("arviz")
    data = est.to_arviz()
    np.testing.assert_allclose(data.posterior["z"].to_numpy()[0], est.posterior_samples()["z"])
    chains = fit(frame, MCMC(warmup=20, samples=30, chains=2))
    data = chains.to_arviz()
    assert data.posterior["sd.z"].shape == (2, 30)
    assert float(arviz.rhat(data)["z"]) == pytest.approx(chains.summary().loc["z", "rhat"], rel=1e-5)
    with pytest.raises(SpecificationError, match="no posterior"):
        fit(frame, MSLE(n_draws=50, check_draws=False)).to_arviz()


def test_the_newer_arviz_takes_groups(est, monkeypatch):
    """Version 1 has no InferenceData, and groups as keys."""
    import types

    seen = {}
    fake = types.SimpleNamespace(from_dict=lambda groups: seen.update(groups) or "tree")
    monkeypatch.setitem(sys.modules, "arviz", fake)
    assert est.to_arviz() == "tree"
    assert seen["posterior"]["x"].shape == (1, 300)
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(MissingExtraError, match="mxlogit\\[arviz\\]"):
        est.to_arviz()
