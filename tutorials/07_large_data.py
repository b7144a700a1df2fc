# %% [markdown]
# # 7. Data larger than memory, several processes, a GPU
#
# A pass over people needs a chunk of them at a time. So data may lie on disk, in shards, and a fit reads them in order.

# %%
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import torch

from mxlogit import VI, MixedLogit, pack_choices
from mxlogit.simulate import simulate_choices

SMOKE = os.environ.get("MXLOGIT_SMOKE") == "1"
PEOPLE, PARTS = (200, 2) if SMOKE else (5_000, 4)
folder = Path(tempfile.mkdtemp())
names = ["price", "time"]

# %% [markdown]
# ## Packing
#
# Files of choices, here a few CSV parts; rows may be in any order. `pack_choices` reads them one by one.

# %%
(folder / "parts").mkdir()
for part in range(PARTS):
    frame, _ = simulate_choices(PEOPLE, 5, 3, random={"price": (-1.0, 0.5), "time": (-0.8, 0.6)}, random_state=part)
    frame["id"] += part * PEOPLE
    frame.to_csv(folder / "parts" / f"{part}.csv", index=False)
packed = pack_choices(folder / "parts", folder / "choices.pack", names=names)
packed

# %% [markdown]
# ## A fit that can be killed
#
# With `checkpoint=`, a fit started again resumes from its last pass, to the same answer.

# %%
est = MixedLogit(random=names, method=VI(checkpoint=folder / "fit.checkpoint"), random_state=0).fit(packed)
print(est.summary().round(3).to_string())

# %% [markdown]
# ## Several processes
#
# Inside a process group of torch.distributed `fit` works on all processes together. Usually `torchrun` starts them; here
# two are started by hand.

# %%
script = folder / "fit.py"
script.write_text(
    textwrap.dedent(
        f'''
        import sys
        import torch.distributed as dist
        from mxlogit import MixedLogit, PackedChoices

        dist.init_process_group("gloo", init_method="file://{folder}/rendezvous", rank=int(sys.argv[1]), world_size=2)
        est = MixedLogit(random={names}, random_state=0).fit(PackedChoices.open(r"{folder / "choices.pack"}"))
        if dist.get_rank() == 0:
            est.coef_.to_csv(r"{folder / "coef.csv"}")
        dist.destroy_process_group()
        '''
    )
)
environment = {**os.environ, "OMP_NUM_THREADS": "1"}
processes = [subprocess.Popen([sys.executable, str(script), str(rank)], env=environment) for rank in range(2)]
ended = [process.wait(timeout=300) for process in processes]
together = np.loadtxt(folder / "coef.csv", delimiter=",", skiprows=1, usecols=1)
print(f"largest difference to one process: {np.abs(together - est.coef_.to_numpy()).max():.1e}")

# %% [markdown]
# ## A GPU
#
# `device="auto"` computes on CUDA where there is one; nothing else changes. Single precision (`dtype="float32"`, the
# default of passes over people) is enough: sums over people are double. A million people, ten choices each, take 2.4 s on
# an H200 and half a minute on two cores of a laptop (README, "Many people"); the first fit of a process 1 to 3 s more.

# %%
print("CUDA is available" if torch.cuda.is_available() else "no GPU here: fits run on the processor")

# %%
assert ended == [0, 0]
assert np.abs(together - est.coef_.to_numpy()).max() < 1e-3
assert est.n_decision_makers_ == PEOPLE * PARTS
assert abs(est.coef_["price"] + 1.0) < 0.15
