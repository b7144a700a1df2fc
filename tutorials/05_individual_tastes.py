# %% [markdown]
# # 5. Tastes of people, seen and never seen
#
# What a person chose says what she likes. The posterior of her tastes joins it with the population's distribution.

# %%
import os

import numpy as np
import pandas as pd

from mxlogit import MixedLogit
from mxlogit.simulate import simulate_choices

SMOKE = os.environ.get("MXLOGIT_SMOKE") == "1"
PEOPLE = 200 if SMOKE else 1_000
TASTES = {"price": (-0.5, 0.8, "negative_lognormal"), "time": (-0.8, 0.6), "comfort": (0.5, 0.8)}

frame, truth = simulate_choices(PEOPLE, 12, 4, random=TASTES, correlation=0.4, random_state=2)
last = frame["situation"] > frame.groupby("id")["situation"].transform("max") - 4
seen, later = frame[~last], frame[last]
families = {name: value[2] if len(value) > 2 else "normal" for name, value in TASTES.items()}
est = MixedLogit(random=families, random_state=0).fit(seen)

# %% [markdown]
# Posterior mean, standard deviation and any quantiles, population uncertainty included:

# %%
people = est.individual_coefficients(statistic=["mean", "sd", 0.05, 0.95])
people.head().round(2)

# %% [markdown]
# How good are they? Means correlate with the truth, and 90 % intervals hold it for nine people of ten - on average over
# data sets. In one, an error of the population is common to all people: where a standard deviation is known to a fifth
# only, all intervals are too wide or too narrow together, those of MCMC too. `summary()` says how well it is known.

# %%
covered, correlation = {}, {}
for name in TASTES:
    low, high = people[(name, 0.05)], people[(name, 0.95)]
    true = truth.tastes[name]
    covered[name] = float(((low <= true) & (true <= high)).mean())
    correlation[name] = float(np.corrcoef(people[(name, "mean")], true)[0, 1])
print(pd.DataFrame({"covered": covered, "correlation": correlation}).round(3).to_string())

# %% [markdown]
# Predictions of the next choices by own tastes beat those by the population's:

# %%
chosen = later["choice"].astype(bool)
by_person = np.log(est.predict_proba(later, tastes="individual")[chosen]).mean()
by_population = np.log(est.predict_proba(later)[chosen]).mean()
print(f"mean log probability of a choice: {by_person:.3f} with own tastes, {by_population:.3f} with the population's")

# %% [markdown]
# ## People never seen
#
# New people need no new fit: their first choices place them in the same population.

# %%
others, other_truth = simulate_choices(50, 12, 4, random=TASTES, correlation=0.4, random_state=3)
newcomers = est.individual_coefficients(others, statistic=["mean", "sd"])
newcomers.head().round(2)

# %% [markdown]
# ## Willingness to pay
#
# A ratio of coefficients of each person; people's medians are robust where a price taste is near zero.

# %%
worth = (people[("comfort", "mean")] / -people[("price", "mean")]).rename("worth of comfort")
print(worth.describe().round(2).to_string())

# %%
assert all((0.78 if SMOKE else 0.86) <= share <= 0.95 for share in covered.values()), covered
assert min(correlation.values()) > 0.4
assert by_person > by_population
assert np.corrcoef(newcomers[("time", "mean")], other_truth.tastes["time"])[0, 1] > 0.3
assert (worth > 0).mean() > 0.5
