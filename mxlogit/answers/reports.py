"""Reports of a fitted model, and its samples for other packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mxlogit.answers import html_report
from mxlogit.answers.state import FittedModel
from mxlogit.errors import MissingExtraError, SpecificationError


class Reports(FittedModel):
    """Reports of a fitted model."""

    def report(
        self,
        path: str | Path,
        X: Any = None,
        *,
        wtp: Sequence[tuple[str, str]] = (),
        elasticities: Sequence[str] = (),
    ) -> None:
        """Write one self-contained HTML page: estimates, tastes, diagnostics with verdicts in words, pictures.

        Parameters
        ----------
        path : str or Path
            File to write.
        X : long frame, optional
            Choice situations, for predicted shares and elasticities.
        wtp : sequence of (attribute, cost)
            Pairs whose willingness to pay is shown.
        elasticities : sequence of str
            Attributes whose elasticities are shown.

        Raises
        ------
        SpecificationError
            If elasticities are asked for without X, or the file cannot be written.
        MissingExtraError
            If jinja2 is missing; without matplotlib there are no pictures.
        """
        self._state()
        if X is None and elasticities:
            raise SpecificationError("elasticities need choice situations: report(path, X=frame, elasticities=[...]).")
        if not Path(path).absolute().parent.is_dir():
            raise SpecificationError(f"there is no folder {str(Path(path).parent)!r} for the report.")
        sections = [html_report.willingness_section(self, *pair) for pair in wtp]
        if X is not None:
            sections.append(html_report.share_section(self, X))
        sections += [html_report.elasticity_section(self, X, attribute) for attribute in elasticities]
        html_report.write_report(self, path, sections)

    def to_arviz(self) -> Any:
        """Convert the posterior samples to arviz: InferenceData before version 1, a DataTree from there on.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            Group ``posterior`` with one variable per parameter, (chain, draw); samples that are no chains are one.

        Raises
        ------
        SpecificationError
            If the fit has no posterior samples.
        MissingExtraError
            If arviz is missing.
        """
        self._state()
        result = self.result_
        if result.samples.kind != "posterior":
            raise SpecificationError("maximum likelihood has no posterior for arviz; fit with method='vi' or 'mcmc'.")
        try:
            import arviz
        except ImportError:
            raise MissingExtraError("to_arviz needs arviz: pip install 'mxlogit[arviz]'.") from None
        values = result.samples.reported[None] if result.chains is None else result.chains
        posterior = {label: values[..., i].cpu().numpy() for i, label in enumerate(result.samples.labels)}
        # From version 1 on, groups are the keys of one dictionary.
        old = hasattr(arviz, "InferenceData")
        return arviz.from_dict(posterior=posterior) if old else arviz.from_dict({"posterior": posterior})
