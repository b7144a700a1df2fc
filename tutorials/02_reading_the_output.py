# %% [markdown]
# # 2. Reading the output: uncertainty, diagnostics, and when not to trust it
#
# A fit says how sure it is and where it is not. Here is a data set that is easy, and three that are not.

# %%
import os
import warnings

import pandas as pd

from mxlogit import VI, ConvergenceWarning, MixedLogit, Priors
from mxlogit.simulate import simulate_choices

SMOKE = os.environ.get("MXLOGIT_SMOKE") == "1"
TASTES = {"price": (-1.0, 0.5), "time": (-0.8, 0.6), "comfort": (0.5, 0.8)}


def simulate(people, situations, random_state=1, random=TASTES):
    """Choices of people with normal tastes, and the truth."""
    return simulate_choices(people, situations, 4, random=random, correlation=0.3, random_state=random_state)


def fit(frame, **settings):
    """A fitted estimator and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        est = MixedLogit(random=list(TASTES), random_state=0, **settings).fit(frame)
    return est, [str(warning.message) for warning in caught]


# %% [markdown]
# ## An easy one: 500 people, ten choices each

# %%
frame, truth = simulate(200 if SMOKE else 500, 10)
est, said = fit(frame)
table = est.summary(level=0.9).assign(truth=truth.coef)
print(table.round(2).to_string())
print(said or "no warnings")

# %% [markdown]
# What the diagnostics mean:
#
# | name | what it is | to worry |
# |---|---|---|
# | `status`, `converged` | how the search ended, a sentence | not converged |
# | `trusted`, `trust` | whether the estimated error is small, and a sentence | not trusted |
# | `error` | estimated distance from the exact posterior by group, in posterior standard deviations | above 0.2 |
# | `pareto_k` | tail of the importance weights of the population posterior | above 0.7 while `ess_population` is small |
# | `ess_population` | their effective sample size, as a share | with the former |
# | `corrected` | whether samples are weighted draws of the exact density | |
# | `ess`, `ess_min` | effective sample size of people's importance weights: mean, worst | mean below about 0.3 |
# | `people_above_k` | share of people whose weights have a heavy tail | above 0.05 |
# | `log_likelihood_error` | Monte Carlo error of the log likelihood | when it is as large as what you compare |

# %%
pd.Series({name: est.diagnostics_[name] for name in ("status", "trust", "error", "ess_population", "corrected", "ess")})

# %% [markdown]
# ## One choice per person
#
# A mixed logit of one choice per person is identified by functional form alone: standard deviations are weakly identified.
# The width of the posterior shows it, and so does the warning. Means of ratios stay usable; spreads do not.

# %%
single, single_truth = simulate(300 if SMOKE else 1_000, 1)
one_choice, said = fit(single)
widths = pd.DataFrame({"ten choices": est.summary()["std_error"], "one choice": one_choice.summary()["std_error"]})
print(widths.round(2).to_string())
print(*said, sep="\n")

# %% [markdown]
# ## Few people
#
# With thirty people the prior counts. Compare two: what differs is what the data do not identify.

# %%
few, _ = simulate(30, 5)
wide, _ = fit(few)
narrow, _ = fit(few, priors=Priors(sd_scale=0.5))
both = pd.DataFrame({"sd_scale 2.5": wide.coef_, "sd_scale 0.5": narrow.coef_})
print(both.round(2).to_string())

# %% [markdown]
# ## A perfect predictor
#
# All people always take the cheapest (separation): no finite coefficient is the best one. The fit ends, with a warning.

# %%
perfect = frame.copy()
perfect["choice"] = perfect.groupby(["id", "situation"])["price"].rank(method="first") == 1
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", ConvergenceWarning)
    separated = MixedLogit(fixed=["price"], random_state=0).fit(perfect)
print(separated.diagnostics_["status"])

# %% [markdown]
# ## When seconds count more than tails
#
# `VI(correct=False)` reports the Gaussian posterior. With few people intervals of standard deviations and correlations
# are then a little too short.

# %%
gaussian, _ = fit(frame, method=VI(correct=False))
moved = (gaussian.coef_ - est.coef_) / est.summary()["std_error"]
print(f"estimates move by up to {moved.abs().max():.2f} posterior sds")

# %%
inside = (table["lower"] <= table["truth"]) & (table["truth"] <= table["upper"])
assert inside.mean() >= 0.6
assert widths.loc["sd.time", "one choice"] > 2.0 * widths.loc["sd.time", "ten choices"]
assert wide.coef_["sd.comfort"] > narrow.coef_["sd.comfort"]
assert "separation" in separated.diagnostics_["status"]
assert moved.abs().max() < 1.0
