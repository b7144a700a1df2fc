# %% [markdown]
# # 9. A transport appraisal: from a raw table to values of time, elasticities and surplus
#
# Swiss travellers chose nine times among train, Swissmetro (a planned underground train) and car. What is an hour worth
# to them, what would a faster train do to its share, and who would gain?

# %%
import os
import tempfile
from pathlib import Path

from mxlogit import MixedLogit, compare_models, datasets, plots

SMOKE = os.environ.get("MXLOGIT_SMOKE") == "1"

df = datasets.load_swissmetro()
if SMOKE:
    df = df[df["id"].isin(df["id"].unique()[:120])]
df[["id", "situation", "alternative", "choice", "available", "time", "cost"]].head(6)

# %% [markdown]
# ## A model
#
# Times are in hundreds of minutes, costs in hundreds of francs. Nobody likes to pay or to lose time: negative lognormal
# coefficients keep that for all people, and the one of cost away from zero, so that values of time have a mean.

# %%
columns = {"decision_maker": "id", "situation": "situation", "alternative": "alternative", "availability": "available"}
random = {"time": "negative_lognormal", "cost": "negative_lognormal"}
est = MixedLogit(random=random, constants=True, base_alternative="CAR", random_state=0, **columns).fit(df)
est.summary().round(3)

# %%
print(est.diagnostics_["trust"])

# %% [markdown]
# ## What is an hour worth?
#
# Willingness to pay is minus the ratio of coefficients: positive where people pay for more. For more *time* it is negative,
# so its opposite is the value of time; 100 francs per 100 minutes are 60 francs an hour.

# %%
value = est.wtp("time", "cost")
print(value.attrs["verdict"])
francs_per_hour = -60.0 * value.drop(index="share below zero")[["estimate", "upper", "lower"]]
francs_per_hour.round(1)

# %% [markdown]
# Of the same people, given their choices, the ten with the highest value of time:

# %%
(-60.0 * est.wtp("time", "cost", people="fit")[["estimate", "upper", "lower"]]).nlargest(10, "estimate").round(0)

# %%
ax = plots.plot_willingness_to_pay(est, "time", "cost")

# %% [markdown]
# ## Money instead of utils
#
# In willingness-to-pay space the value of time is a parameter. Constants are amounts of money as well, so that people whose
# cost coefficient is large decide more sharply in everything: another model, judged here by people left out.

# %%
money = MixedLogit(random=random, scale="cost", constants=True, base_alternative="CAR", random_state=0, **columns).fit(
    df
)
alike = MixedLogit(fixed=list(random), constants=True, base_alternative="CAR", random_state=0, **columns).fit(df)
compared = compare_models({"utils": est, "money": money, "all alike": alike})
compared[["parameters", "log_likelihood", "elpd", "elpd_difference", "difference_error"]].round(1)

# %%
in_money = -60.0 * money.wtp("time", "cost").drop(index="share below zero")[["estimate", "upper", "lower"]]
in_money.round(1)

# %% [markdown]
# ## Elasticities
#
# Per cent by which the share of one mode changes if the time of another grows by one per cent everywhere.

# %%
elasticities = est.elasticities(df, "time", interval=0.9)
elasticities.round(3)

# %% [markdown]
# ## A faster train
#
# Trains that take a fifth less time. Both scenarios use the same samples and tastes, so the interval of the difference is
# that of the change alone.

# %%
train = df["alternative"] == "TRAIN"
faster = df.assign(time=df["time"].where(~train, 0.8 * df["time"]))
shares = est.shares({"today": df, "faster": faster}, interval=0.9)
shares.round(4)

# %%
by_class = est.shares({"today": df, "faster": faster}, by="FIRST").unstack("alternative")
by_class.round(3)

# %% [markdown]
# Where do those go who would lose the train?

# %%
est.diversion(df, interval=0.9).loc["TRAIN"].round(3)

# %% [markdown]
# ## Who gains?
#
# Consumer surplus per trip in hundreds of francs: positive for those who gain. Nobody loses by a faster train.

# %%
surplus = est.surplus(df, faster, "cost")
surplus.round(4)

# %% [markdown]
# ## For the files
#
# A report to send, and the model, which answers the same in another process.

# %%
with tempfile.TemporaryDirectory() as folder:
    est.report(Path(folder) / "report.html", X=df, wtp=[("time", "cost")], elasticities=["time"])
    est.save(Path(folder) / "model")
    same = MixedLogit.load(Path(folder) / "model").wtp("time", "cost").equals(value)
print("the saved model gives the same values:", same)

# %%
assert same
assert francs_per_hour.loc["50 %", "estimate"] > 0
assert elasticities.loc[("TRAIN", "TRAIN"), "estimate"] < 0
assert shares.loc[("faster - today", "TRAIN"), "lower"] > 0
assert surplus.loc["5 %", "lower"] >= 0
assert in_money.loc["50 %", "estimate"] > 0
assert compared.index[-1] == "all alike"
