# %% [markdown]
# # 1. A first model in five minutes
#
# 361 households chose between four electricity contracts, up to twelve times each (Revelt and Train). A contract has a
# fixed price `pf`, or rates by time of day (`tod`) or season (`seas`); a length in years `cl`; a local (`loc`) or a
# well-known (`wk`) supplier. A mixed logit lets every household have tastes of its own.

# %%
import os

from mxlogit import MixedLogit, datasets

SMOKE = os.environ.get("MXLOGIT_SMOKE") == "1"
ATTRIBUTES = ["pf", "cl", "loc", "wk", "tod", "seas"]

df = datasets.load_electricity()
if SMOKE:
    df = df[df["id"] <= 80]
df.head(8)

# %% [markdown]
# A long frame: a row per alternative, columns for the decision maker (`id`), the choice situation (`chid`), the
# alternative (`alt`) and whether it was chosen (`choice`). Columns with other names are named to the estimator.

# %%
est = MixedLogit(random=ATTRIBUTES, situation="chid", alternative="alt", random_state=0)
est.fit(df)
est.summary().round(2)

# %% [markdown]
# `pf` is the mean taste for price, `sd.pf` how much it varies over households, `cor.tod:seas` how tastes go together.
# `lower` and `upper` bound 95 % posterior intervals. Higher prices repel nearly all people:

# %%
tastes = est.taste_distribution()
tastes.round(3)

# %% [markdown]
# Tastes of households, given what each of them chose:

# %%
est.individual_coefficients(statistic=["mean", "sd"]).head().round(2)

# %% [markdown]
# What people would choose. Tastes of the population, or of these very households:

# %%
shares = est.shares(df)
fitted = est.shares(df, tastes="individual")
observed = df.loc[df["choice"].astype(bool), "alt"].value_counts(normalize=True).sort_index()
print(shares.round(3).to_string(), observed.round(3).to_string(), sep="\n\n")

# %% [markdown]
# A scenario is another frame: every fixed price one cent higher.

# %%
dearer = df.assign(pf=df["pf"] + 1.0 * (df["pf"] > 0) * (df["alt"] == df["alt"].min()))
change = est.shares(dearer) - shares
print(change.round(3).to_string())

# %% [markdown]
# Is the fit to be trusted? `diagnostics_["status"]` is a sentence; the next tutorial reads the others.

# %%
print(est.diagnostics_["status"])
print(
    f"log likelihood {est.log_likelihood_:.1f} +- {est.log_likelihood_error_:.1f}, {est.diagnostics_['seconds']:.1f} s"
)

# %%
assert est.diagnostics_["converged"]
assert est.coef_["pf"] < 0 < est.coef_["loc"]
assert est.coef_["cor.tod:seas"] > 0.5
assert change.iloc[0] < 0
assert abs(shares.sum() - 1.0) < 1e-6
assert (fitted - observed).abs().max() < 0.06
