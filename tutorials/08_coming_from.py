# %% [markdown]
# # 8. Coming from xlogit, biogeme, mlogit or apollo
#
# The same model in other packages and here: electricity, normal tastes, uncorrelated, maximum simulated likelihood with
# Halton draws.
#
# **xlogit**
#
#     model = MixedLogit()
#     model.fit(X=df[names], y=df["choice"], varnames=names, ids=df["chid"], panels=df["id"], alts=df["alt"],
#               randvars={"pf": "n", "cl": "n", "loc": "n", "wk": "n", "tod": "n", "seas": "n"}, n_draws=600)
#
# **mlogit** (R)
#
#     mlogit(choice ~ pf + cl + loc + wk + tod + seas | 0, data,
#            rpar = c(pf = "n", cl = "n", loc = "n", wk = "n", tod = "n", seas = "n"), panel = TRUE, halton = NA, R = 600)
#
# **biogeme**: a `BetaParameter` for every mean and standard deviation, `Draws("...", "NORMAL_HALTON2")` for every taste,
# utilities, `PanelLikelihoodTrajectory`, `MonteCarlo`, `log`.
#
# **apollo** (R): `apollo_randCoeff` with `inter_draws`, `apollo_probabilities` with `apollo_mnl`, `apollo_panelProd`,
# `apollo_avgInterDraws`.

# %%
import os

import pandas as pd

from mxlogit import MSLE, MixedLogit, datasets, wald_test
from mxlogit.postestimation.hypotheses import parameter_function

SMOKE = os.environ.get("MXLOGIT_SMOKE") == "1"
names = ["pf", "cl", "loc", "wk", "tod", "seas"]
df = datasets.load_electricity()
if SMOKE:
    df = df[df["id"] <= 100]

# %%
classic = MixedLogit(
    random=names,
    correlated=False,
    situation="chid",
    alternative="alt",
    method=MSLE(n_draws=100 if SMOKE else 600, draws="halton"),
    random_state=0,
).fit(df)
classic.summary().round(3)

# %% [markdown]
# Where things went:
#
# | elsewhere | here |
# |---|---|
# | `randvars={"pf": "n"}`, `rpar` | `random=["pf"]` or `{"pf": "normal"}`; "ln" is "lognormal", with the sign: "negative_lognormal" |
# | `panels=`, `panel = TRUE`, `panelID` | `decision_maker=`; always a panel |
# | `avail=` | `availability=`, or no row |
# | `correlation = TRUE`, `apollo` by hand | `correlated=True` (default), or blocks |
# | intercepts, `fit_intercept` | `constants=True` |
# | WTP space, `scale_factor=` | `scale="cost"` |
# | `halton=True`, `n_draws` | `MSLE(draws="halton", n_draws=)`; the default engine needs no number of draws |
# | robust, clustered errors | `MSLE(covariance="robust")`, `"clustered"` with `cluster=` |
# | `deltamethod`, `apollo_deltaMethod` | `parameter_function(est, lambda b: ...)` |
# | conditionals, `fitted(..., type = "parameters")` | `individual_coefficients()` |
# | `predict`, `apollo_prediction` | `predict_proba`, `shares` |
# | `lrtest`, `waldtest` | `likelihood_ratio_test`, `wald_test` |

# %% [markdown]
# A ratio of coefficients with its standard error, and a test:

# %%
ratio = parameter_function(classic, lambda b: {"worth of a local supplier": b["loc"] / -b["pf"]})
print(ratio.round(3).to_string())
print(wald_test(classic, {"wk": 0.0}))

# %% [markdown]
# The default engine on the same model: no number of draws to choose, a posterior instead of an optimum.

# %%
bayes = MixedLogit(random=names, correlated=False, situation="chid", alternative="alt", random_state=0).fit(df)
both = pd.DataFrame({"simulated likelihood": classic.coef_, "posterior mean": bayes.coef_})
print(both.round(3).to_string())

# %%
apart = (both["simulated likelihood"] - both["posterior mean"]).abs() / bayes.summary()["std_error"]
assert apart.max() < (2.5 if SMOKE else 1.5)
assert classic.diagnostics_["converged"]
assert ratio["estimate"].iloc[0] > 0
