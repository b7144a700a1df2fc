# %% [markdown]
# # 6. Flows, memory-saving backward passes and second-order updates: when each pays
#
# The default needs none of these: Newton steps on the marginal likelihood leave a trained network nothing to win. They
# are for data where people's posteriors are not Gaussian, for encoders that are wanted for their own sake, and for long
# panels.

# %%
import os
import warnings

import pandas as pd

from mxlogit import SVI, VI, ConvergenceWarning, MixedLogit, Training, datasets, memory_report
from mxlogit.simulate import simulate_choices

SMOKE = os.environ.get("MXLOGIT_SMOKE") == "1"
warnings.simplefilter("ignore", ConvergenceWarning)
ATTRIBUTES = ["pf", "cl", "loc"] if SMOKE else ["pf", "cl", "loc", "wk", "tod", "seas"]


def electricity(method):
    """An estimator of the electricity panel."""
    return MixedLogit(random=ATTRIBUTES, situation="chid", alternative="alt", method=method, random_state=0)


# %% [markdown]
# ## A flow pays with one choice per person
#
# `flow="auto"` looks at the importance weights of the polished Gaussian and trains a spline where they are uneven. With
# the first choice of every household only, they are.

# %%
df = datasets.load_electricity()
first = df[df.groupby("id")["chid"].transform("min") == df["chid"]]
plain = electricity(VI(flow=None, correct=False)).fit(first)
flown = electricity(VI(flow="affine", correct=False)).fit(first)
rows = {
    name: {k: est.diagnostics_[k] for k in ("ess", "ess_min", "log_likelihood_error", "seconds")}
    for name, est in (("Gaussian", plain), ("affine flow", flown))
}
print(pd.DataFrame(rows).T.round(3).to_string())

# %% [markdown]
# ## Second-order updates
#
# The same posterior by other engines. Newton is the default since it gets there first; the others are for comparison,
# for their Monte Carlo error (`DADVI()`), or for training all weights of a guide (`"hessian_free"`, `"lbfgs"`).

# %%
frame, truth = simulate_choices(
    100 if SMOKE else 300, 8, 4, random={"price": (-1.0, 0.5), "time": (-0.8, 0.6)}, random_state=4
)
engines = {
    "newton": VI(correct=False),
    "natural": VI(optimizer="natural", correct=False),
    "lbfgs": SVI(optimizer="lbfgs", training=Training(steps=8 if SMOKE else 30)),
}
fits = {}
for name, method in engines.items():
    fits[name] = MixedLogit(random=["price", "time"], method=method, random_state=0).fit(frame)
found = pd.DataFrame({name: est.coef_ for name, est in fits.items()})
print(found.round(3).to_string())
print({name: round(est.diagnostics_["seconds"], 2) for name, est in fits.items()})

# %% [markdown]
# ## Memory-saving backward passes
#
# `SVI(sbp=...)` backpropagates the encoder through a share of every person's situations: gradients stay unbiased, what is
# kept for the backward pass shrinks by that share. What there is to save, before a fit:

# %%
panel, _ = simulate_choices(64, 64, 4, random={"price": (-1.0, 0.5), "time": (-0.8, 0.6)}, random_state=5)
est = MixedLogit(random=["price", "time"], method=SVI(sbp=0.25, training=Training(batch_size=32)), random_state=0)
report = memory_report(est, panel)
print(report.to_string())

# %% [markdown]
# Trained under masks, the guide is as good as by plain backpropagation:

# %%
training = Training(steps=40 if SMOKE else 300, batch_size=32)
masked, whole = (
    MixedLogit(random=["price", "time"], method=SVI(sbp=sbp, flow=None, training=training), random_state=0).fit(panel)
    for sbp in (0.25, None)
)
print(f"log likelihood {masked.log_likelihood_:.1f} under masks, {whole.log_likelihood_:.1f} without")

# %%
assert flown.diagnostics_["ess"] > plain.diagnostics_["ess"]
assert (found["newton"] - found["natural"]).abs().max() < 0.1
assert abs(masked.log_likelihood_ / whole.log_likelihood_ - 1.0) < 0.02
