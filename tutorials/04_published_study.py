# %% [markdown]
# # 4. The published simulation study, again
#
# Rodrigues (2022, arXiv 2004.05426) compared simulated likelihood, Gibbs sampling and amortized variational inference on
# 30 data sets of each of four sizes. The package regenerates them draw by draw.

# %%
import os
from pathlib import Path

import pandas as pd

from mxlogit.simulate import simulate_published_study
from mxlogit.study import beside_published, plot_seconds, run_study

SMOKE = os.environ.get("MXLOGIT_SMOKE") == "1"
RESULTS = Path(__file__).parent / "results" if "__file__" in globals() else Path("results")

# %% [markdown]
# The published check: in how many per cent of situations the alternative with the best deterministic utility is chosen.

# %%
study = simulate_published_study(500, 5, 1)
print(f"{study.best_share:.2f} % (published: 46.60)")

# %% [markdown]
# ## A few runs, here and now
#
# One evaluator for all engines: errors against the truth, coverage of 90 % intervals, log probability of choices and of
# people that the fit has not seen, seconds.

# %%
small = run_study("published", sizes=[500], runs=1 if SMOKE else 5, methods=["vi", "vi_uncorrected"])
beside_published(small).round(3)

# %% [markdown]
# ## All thirty
#
# Commands like this one made the files in `tutorials/results/` (interrupted studies resume; more sizes, more files):
#
#     mxlogit study published --sizes 500,2000,10000,50000 --runs 30 --methods vi --out tutorials/results/published_vi.csv

# %%
table = pd.concat([pd.read_csv(path) for path in sorted(RESULTS.glob("published_*.csv"))])
beside = beside_published(table)
beside.round(4)

# %% [markdown]
# Errors lie at the attainable bound, the asymptotic error of maximum likelihood; the published amortized method's error
# of the covariance stops falling.

# %%
ax = plot_seconds(table, published=("MSLE", "Gibbs", "AVI v2-d", "AVI v2-e"))

# %%
vi = beside.xs("vi", level="method")
known = beside.xs("attainable", level="method")
assert abs(study.best_share - 46.60) < 0.005
assert (small["failure"] == "").all()
for name in ("rmse_alpha", "rmse_zeta", "rmse_omega"):
    ahead = vi[name] - 2.0 * vi[f"{name}_se"] - known[name]
    assert (ahead.dropna() < 0.0).all(), name
