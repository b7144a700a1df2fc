"""`MixedLogit`: the estimator, which prepares data and model, runs an engine and delegates tables to `results`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mxlogit.answers import Answers
from mxlogit.choices.covariates import centre_products
from mxlogit.errors import (
    ConvergenceWarning,
    NotFittedError,
    check_probability,
)
from mxlogit.execution.division import share_people
from mxlogit.execution.identity import WITHOUT_EFFECT, agree_on, describe_settings
from mxlogit.execution.people import People
from mxlogit.execution.processes import Communicator, current_team
from mxlogit.fit import Fit
from mxlogit.inference.method import Method
from mxlogit.inference.positive_deviations import with_positive_deviations
from mxlogit.inference.uncentred import uncentred
from mxlogit.inference.weighting import cluster_sentences, scale_weights, weight_sentences
from mxlogit.inference.wrong_sign import run_signed
from mxlogit.model.build import build_model
from mxlogit.model.priors import Priors
from mxlogit.reading import complete, read_choices, with_made_columns
from mxlogit.request import (
    Fitted,
    ProgressLine,
    find_offsets,
    gather_covariates,
    make_panels,
    resolve_device,
    resolve_dtype,
    resolve_method,
    resolve_seed,
    sum_moments,
)
from mxlogit.results import frames
from mxlogit.spec import Columns, Mixture, Network, Specification, make_specification


class MixedLogit(Answers):
    r"""Mixed logit choice model with Bayesian inference.

    Decision maker n in situation t gives alternative j the utility
    :math:`x_F'\alpha + x_R'\beta_n + \varepsilon`, :math:`\beta_n = g(\eta_n)`,
    :math:`\eta_n \sim N(\zeta, \Omega)`.

    Parameters
    ----------
    fixed : sequence of str
        Attribute columns with a fixed coefficient.
    random : sequence of str or mapping column -> distribution
        Attribute columns whose coefficients vary over decision makers. A list means normal. Distributions:
        "normal", "lognormal", "negative_lognormal", "truncated_normal", "censored_normal", "uniform",
        "triangular", "johnson_sb" (tastes between 0 and 1). ``coef_`` reports the latent normal: for a lognormal the
        location of the logarithm, so that the median taste is ``exp(coef_["x"])``, and its ratio to another coefficient
        is not a willingness to pay (`taste_distribution` has mean and sd of the taste itself).
        If the likelihood is as high without a column, because its effect has the opposite sign of its
        distribution, the taste is fixed at zero, its errors are NaN, and ``diagnostics_["wrong_sign"]`` lists it.
    correlated : bool or sequence of sequences of str
        Correlation of the latent normals: full (True), none (False), or within blocks of columns.
    decision_maker, situation, alternative, choice : str
        Columns of the long frame. A choice situation is a pair (decision maker, situation): situation ids
        may restart for every person. ``choice`` holds 0/1 or False/True.
    availability : str, optional
        Column of 0/1; unavailable alternatives may also be omitted from the frame.
    weights : str, optional
        Column of positive frequency weights, constant within a decision maker: the number of decision makers that each
        one represents. Weight 2 gives the posterior of data with the person twice, and a mean of 1,000 that of a sample
        1,000 times as large (only the robust and clustered errors of ``MSLE`` do not depend on the unit of weights).
        ``MCMC`` needs whole numbers.
    weights_sum : None, "given" or "n"
        Scaling of the weights. None and "given" leave them unchanged; None warns if their mean is below 0.5 or above 2,
        "given" declares them to be counts. "n" scales them to sum to the number of decision makers, as is appropriate
        for weights that make a sample representative (survey weights).
    constants : bool
        Whether to add alternative-specific constants ``asc.<alternative>``. They may be named in ``random``, and may be
        the only coefficients. A column with the label of a constant is rejected, unless it holds the same dummies.
    base_alternative : object
        Alternative without a constant; by default the first in sorted order.
    scale : str, optional
        Column of ``fixed`` or ``random``, such as a cost, whose coefficient is the scale in willingness-to-pay space:
        every other coefficient is then an amount in units of this column, positive if people pay for more
        (`mxlogit.model.wtp_space`). With ``method`` "vi", "mcmc" or "msle".
    mean_shifters : mapping column -> sequence of str or Network, optional
        Covariates of the decision makers, numbers that are constant within a person, on which the location of a taste
        (or a fixed coefficient, or a constant) depends linearly: ``{"price": ["income", "urban"]}`` makes the mean of
        the price's coefficient ``price + price:income * income + price:urban * urban``, so that ``price`` is the mean
        at covariates of zero. Of distributions other than the normal, it is the mean of the latent normal: of a
        lognormal taste, effects are on its logarithm, and of a lognormal ``scale``, on that of the scale of utility
        (heteroscedastic groups). With ``Network(["income", "age"])`` it depends on them smoothly; with ``method``
        "vi", "svi" or "mcmc". `covariate_effects` gives average effects. Tables of tastes and of willingness to pay
        include what covariates add.
    held : mapping column -> float, optional
        Fixed coefficients and means of tastes that are not estimated, and their values: ``{"transit": 0.0}`` makes the
        random coefficient of a dummy an error component, which its alternatives share. Random coefficients with held
        means are correlated among each other only. With ``method`` "vi", "msle" or "mcmc".
    nests : mapping name -> sequence of alternatives, optional
        Groups of alternatives that share a random term of mean zero, whose standard deviation is ``sd.nest.<name>``:
        ``{"transit": ["bus", "train"]}``. They may overlap, and are independent of each other and of the tastes. With
        ``method`` "vi", "msle" or "mcmc".
    within : mapping column -> "normal", optional
        Normal tastes or fixed coefficients that also vary between the choice situations of a person, around the
        person's own, by normal deviations with standard deviation ``sd.within.<column>``: ``{"time": "normal"}``. At
        most two. With ``method`` "vi", "msle" or "mcmc".
    mixing : Mixture, optional
        Classes of decision makers, of each of which the random coefficients have values (``Mixture(classes=3,
        spread=0)``, a latent class model) or distributions of their own. Labels: ``class1.<column>``, and
        ``class2.membership`` for the logit of belonging to class 2 instead of class 1.
    cluster : str, optional
        Column of cluster labels, constant within a decision maker, for ``MSLE(covariance="clustered")``.
    priors : Priors, optional
        Priors of the population parameters. None means ``Priors(standardize=True)``: normal(0, 10) locations and
        half-Cauchy(2.5) standard deviations in units of standardised attributes, and uniform correlations. Locations
        that covariates shift have theirs at average covariates.
    method : "vi", "svi", "msle", "mcmc" or a settings object such as ``VI(...)`` or ``MSLE(...)``
        Inference engine.
    random_state : int, numpy generator or None
        Seed; the same seed gives the same result on the same machine.
    device : "auto", "cpu", "cuda" or torch.device
        Device of the computations over people.
    dtype : "auto", "float32" or "float64"
        Floating point type of the computations over people; sums over people and population parameters are float64.
    verbose : int
        Progress report: 0 for a progress line on terminals in fits longer than a second, 1 for a line of text per pass.

    Attributes
    ----------
    coef_ : pandas.Series
        Posterior means by label: columns, ``sd.<column>`` and ``cor.<a>:<b>`` of the latent normals; for a lognormal
        the location and sd of its logarithm.
    log_likelihood_, log_likelihood_error_ : float
        Marginal log likelihood at ``coef_`` by importance sampling, and its Monte Carlo standard error.
    diagnostics_ : dict
        ``status`` (a sentence), ``converged``, and the numbers of `mxlogit.diagnostics.record.Diagnostics` that the
        engine has.
    result_ : Fit
        Result of the engine.
    n_decision_makers_, n_situations_ : int
        Numbers of decision makers and of choice situations of the fit.

    References
    ----------
    Train (2009), Discrete Choice Methods with Simulation, chapters 6 and 12.
    Rodrigues (2022), arXiv 2004.05426.

    Examples
    --------
    >>> from mxlogit import MixedLogit, datasets
    >>> df = datasets.load_electricity()
    >>> est = MixedLogit(fixed=["pf", "cl"], situation="chid", alternative="alt", random_state=0)
    >>> est.fit(df).coef_.round(2).to_dict()
    {'pf': 0.06, 'cl': -0.06}
    """

    def __init__(
        self,
        *,
        fixed: Sequence[str] = (),
        random: Sequence[str] | Mapping[str, str] = (),
        correlated: bool | Sequence[Sequence[str]] = True,
        decision_maker: str = "id",
        situation: str = "situation",
        alternative: str = "alternative",
        choice: str = "choice",
        availability: str | None = None,
        weights: str | None = None,
        weights_sum: str | None = None,
        constants: bool = False,
        base_alternative: object = None,
        scale: str | None = None,
        mean_shifters: Mapping[str, Sequence[str] | Network] | None = None,
        held: Mapping[str, float] | None = None,
        nests: Mapping[str, Sequence[object]] | None = None,
        mixing: Mixture | None = None,
        within: Mapping[str, str] | None = None,
        cluster: str | None = None,
        priors: Priors | None = None,
        method: str | Method = "vi",
        random_state: Any = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        verbose: int = 0,
    ) -> None:
        self.fixed = fixed
        self.random = random
        self.correlated = correlated
        self.decision_maker = decision_maker
        self.situation = situation
        self.alternative = alternative
        self.choice = choice
        self.availability = availability
        self.weights = weights
        self.weights_sum = weights_sum
        self.constants = constants
        self.base_alternative = base_alternative
        self.scale = scale
        self.mean_shifters = mean_shifters
        self.held = held
        self.nests = nests
        self.mixing = mixing
        self.within = within
        self.cluster = cluster
        self.priors = priors
        self.method = method
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.verbose = verbose

    # -- fitting --------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MixedLogit:
        """Fit the model.

        Parameters
        ----------
        X : long frame (pandas, polars, pyarrow), ChoiceData or PackedChoices
            Choices with one row per decision maker, situation and alternative; never modified. In a process group of
            torch.distributed every process passes the same data, which are then split, or its own decision makers,
            whose labels need not be unique (`mxlogit.execution.division`); tables of people then cover its own people.
        y : array, optional
            Choice indicators 0/1, one per row, used instead of the choice column.
        sample_weight : array, optional
            Frequency weights, one per row and constant within a decision maker, used instead of the weights column
            (see ``weights``).

        Returns
        -------
        MixedLogit
            The estimator itself.

        Raises
        ------
        ChoiceDataError
            If the data have problems; the message lists all of them.
        SpecificationError
            If an argument is wrong or a coefficient is not identified.
        """
        team = current_team()
        with team.propagate_errors():
            fitted, people, n_situations = self._prepare(X, team, y=y, weights=sample_weight)
            generator = torch.Generator().manual_seed(fitted.seed)
            with ProgressLine(self.verbose, team.rank) as callback:
                method = resolve_method(self.method)
                result = run_signed(method, fitted.model, people, generator=generator, callback=callback)
        result = with_positive_deviations(uncentred(result, fitted.model), fitted.model)
        said = weight_sentences(people, self.weights_sum, method) + cluster_sentences(self.cluster, method)
        return self._remember(fitted, replace(result, warnings=said + result.warnings), len(people), n_situations)

    def _prepare(self, X: Any, team: Communicator, **given: Any) -> tuple[Fitted, People, int]:
        """Read the data of this process, and determine seed, people and model jointly with the other processes."""
        specification = self._specify()
        method = resolve_method(self.method)
        device, dtype = resolve_device(self.device), resolve_dtype(self.dtype, method)
        seed = team.gather(resolve_seed(self.random_state))[0]
        asked = {field.name: repr(getattr(specification, field.name)) for field in fields(specification)}
        others = {"priors": repr(self.priors), "weights_sum": repr(self.weights_sum), "dtype": str(dtype)}
        others["a checkpoint"] = repr(getattr(method, "checkpoint", None) is not None)
        agree_on(team, {**describe_settings(method, WITHOUT_EFFECT), **asked, **others})
        data = read_choices(X, self._columns(), specification, **given)
        specification = complete(specification, data)
        data = share_people(with_made_columns(data, specification, complete=True), team, dtype)
        data = scale_weights(data, self.weights_sum, team)
        everybody = gather_covariates(data, specification, team)
        offsets = find_offsets(specification, everybody)
        centred = centre_products(data, specification.shifters, offsets)
        moments = sum_moments(centred, specification, team)
        model = build_model(specification, moments, self.priors, offsets, everybody)
        varying = model.mixing.varying
        seen = make_panels(centred, specification, device, dtype, offsets, varying)
        panels = seen if centred is data else make_panels(data, specification, device, dtype, varying=varying)
        people = People.gather(seen, team)
        facts = data.decision_makers, data.alternatives, seed, people.first, len(people), moments.n_rows, everybody
        return Fitted(specification, model, panels, *facts), people, moments.n_situations

    def save(self, folder: str | Path) -> None:
        """Save the fitted estimator to a folder: its arguments and results as JSON and tensors, without code.

        The choices of the people of the fit are saved as differences of attributes; of packed choices only their place.

        Parameters
        ----------
        folder : str or Path
            A new folder, or one with a saved model, which is replaced.

        Raises
        ------
        SpecificationError
            If the folder holds something else or cannot be written.
        """
        # Imported here, because flows need Pyro.
        from mxlogit.saved_models import write_model

        facts = {
            "fitted": self._state(),
            "result": self.result_,
            "counts": (self.n_decision_makers_, self.n_situations_),
        }
        write_model(folder, self.get_params(deep=False), facts)

    @classmethod
    def load(cls, folder: str | Path) -> MixedLogit:
        """Load an estimator that `save` has written: its answers are the same to the last bit, on a processor.

        Parameters
        ----------
        folder : str or Path
            Folder of the saved model.

        Returns
        -------
        MixedLogit

        Raises
        ------
        SpecificationError
            If there is no saved model, it is damaged, or a newer version wrote it.
        """
        from mxlogit.saved_models import read_model

        parameters, facts = read_model(folder)
        return cls(**parameters)._set(facts["fitted"], facts["result"], *facts["counts"])

    def _remember(self, fitted: Fitted, result: Fit, n_people: int, n_situations: int) -> MixedLogit:
        """Set all fitted attributes, then warn."""
        self._set(fitted, result, n_people, n_situations)
        for sentence in result.warnings:
            warnings.warn(sentence, ConvergenceWarning, stacklevel=3)
        return self

    def _set(self, fitted: Fitted, result: Fit, n_people: int, n_situations: int) -> MixedLogit:
        """Set all fitted attributes."""
        self._fitted = fitted
        self.result_ = result
        self.coef_ = frames.coefficient_series(fitted.model, result)
        self.diagnostics_ = result.describe()
        self.log_likelihood_ = result.diagnostics.log_likelihood
        self.log_likelihood_error_ = result.diagnostics.log_likelihood_error
        self.n_decision_makers_ = n_people
        self.n_situations_ = n_situations
        return self

    def _specify(self) -> Specification:
        asked = signature(make_specification).parameters
        return make_specification(**{name: getattr(self, name) for name in asked})

    def _columns(self) -> Columns:
        return Columns(**{role.name: getattr(self, role.name) for role in fields(Columns)})

    def _state(self) -> Fitted:
        if not hasattr(self, "_fitted"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first.")
        return self._fitted

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """Table of estimates.

        Parameters
        ----------
        level : float
            Probability of the intervals ``lower`` to ``upper``.

        Returns
        -------
        pandas.DataFrame
            Index: labels. Columns: ``estimate`` (posterior mean), ``std_error`` (posterior sd), ``lower``,
            ``upper``; also ``rhat`` and ``ess`` after MCMC, ``z`` and ``p`` after maximum likelihood. Of classes, the
            last rows are their shares among the people of the fit, ``class1.share`` and so on.
        """
        fitted = self._state()
        check_probability("level", level)
        return frames.summary_frame(fitted.model, self.result_, level, fitted.everybody)
