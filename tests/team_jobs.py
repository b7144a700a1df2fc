"""What the processes of `test_team.py` do: `run` is what each of them begins with."""

import datetime
import pickle
import warnings
from dataclasses import replace
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from mxlogit import MSLE, SVI, VI, ChoiceData, MixedLogit, PackedChoices, ProcessError, Training
from mxlogit.choices import chunks
from mxlogit.simulate import simulate_published_study

N = 300
NAMES = {"fixed": ["f1", "f2", "f3"], "random": ["r1", "r2", "r3", "r4", "r5"]}


def make_data(n=N):
    return simulate_published_study(n, 5, 1).data


def ragged(data):
    """The same choices; the first half of people lack alternatives and occasions, and so are of more shapes."""
    arrays = data.padded()
    random = np.random.default_rng(0)
    available, observed = arrays.available.numpy().copy(), arrays.observed.numpy().copy()
    half, chosen = len(available) // 2, arrays.chosen.numpy()
    available[:half] &= random.random(available[:half].shape) < 0.6
    np.put_along_axis(available, chosen[..., None], values=True, axis=2)
    observed[:half, 1:] &= random.random(observed[:half, 1:].shape) < 0.7
    return ChoiceData.from_arrays(
        arrays.attributes.numpy(),
        chosen,
        names=data.names,
        available=available,
        observed=observed,
        decision_makers=data.decision_makers,
    )


def make_estimator(**more):
    settings = {"method": VI(draws=16, n_samples=40), "dtype": "float64", "random_state": 4, **NAMES, **more}
    return MixedLogit(**settings)


def facts(est):
    """What must be the same in all processes, and the people of this one."""
    return {
        "coef": est.coef_.to_numpy(),
        "sd": est.summary()["std_error"].to_numpy(),
        "log_likelihood": est.log_likelihood_,
        "people": est.n_decision_makers_,
        "situations": est.n_situations_,
        "passes": est.diagnostics_["passes"],
        "k": est.diagnostics_["pareto_k_people"],
        "mine": est.individual_coefficients(statistic=["mean"]).index.tolist(),
    }


def same_data(rank, size, folder):
    return facts(make_estimator().fit(make_data()))


def unlabelled(data):
    """The same choices as of people labelled 0, 1, ...: the default of `from_arrays`."""
    return replace(data, decision_makers=np.arange(data.n_decision_makers))


def own_people(rank, size, folder):
    """Very unequal shares, and people with the same labels in each."""
    cuts = [0, 40, 290, N][: size + 1]
    cuts[-1] = N
    return facts(make_estimator().fit(unlabelled(make_data().take(slice(cuts[rank], cuts[rank + 1])))))


def covariates(rank, size, folder):
    """Shares of people whose covariate differs: the tastes of all are those of the people of all processes."""
    data = make_data()
    year = torch.linspace(1_940.0, 2_000.0, N, dtype=torch.float64).repeat_interleave(25)[:, None]
    rows = torch.cat([data.choices.rows, year.to(data.choices.rows)], 1)
    data = replace(data, choices=replace(data.choices, rows=rows), names=(*data.names, "year"))
    cuts = [0, 40, 290, N][: size + 1]
    cuts[-1] = N
    est = make_estimator(mean_shifters={"r1": ["year"]})
    est.fit(unlabelled(data.take(slice(cuts[rank], cuts[rank + 1]))))
    mine = est.individual_coefficients(statistic=["mean"])["r1", "mean"].to_numpy()
    return {
        "coef": est.coef_.to_numpy(),
        "tastes": est.taste_distribution().loc["r1", ["mean", "sd"]].to_numpy(dtype=float),
        "mine": mine,
    }


def nobody_here(rank, size, folder):
    """All people are with the last process."""
    data = make_data()
    return facts(make_estimator().fit(data if rank == size - 1 else data.take(slice(0, 0))))


def many_people(rank, size, folder):
    """Subsamples, and a seed that only the first process knows."""
    import mxlogit.inference.budgets as budgets
    import mxlogit.inference.vi.newton as newton

    newton.STAGE_SIZES, budgets.MOST_PEOPLE, budgets.MOST_SITUATIONS = (60, 150), 60, 300
    import mxlogit.inference.task as task

    task.LARGEST_SAMPLE = 150
    est = make_estimator(method=VI(n_samples=400), random_state=4 if rank == 0 else None)
    return facts(est.fit(make_data()))


def shards(rank, size, folder):
    """Two shards for two or three processes."""
    return facts(make_estimator().fit(PackedChoices.open(folder / "pack")))


def failing(rank, size, folder):
    """The second process has no choices."""
    try:
        make_estimator().fit(make_data() if rank != 1 else pd.DataFrame({"id": []}))
    except Exception as trouble:
        return type(trouble).__name__, str(trouble)
    return "no error"


def failing_in_a_pass(rank, size, folder):
    import mxlogit.integration.marginal as marginal

    polish, calls = marginal.polish, []

    def fail(*given):
        calls.append(1)
        if rank == 1 and len(calls) == 3:
            raise MemoryError("no room")
        return polish(*given)

    marginal.polish = fail
    try:
        make_estimator().fit(make_data())
    except Exception as trouble:
        return type(trouble).__name__, str(trouble)
    finally:
        marginal.polish = polish
    return "no error"


def failing_late(rank, size, folder):
    """The first process fails after its last pass."""
    est = make_estimator(method=VI(draws=16, n_samples=40, correct=False, flow=None))
    if rank == 0:
        import mxlogit.inference.vi.route as default

        report_fit = default.report_fit

        def fail(*given):
            default.report_fit = report_fit
            raise MemoryError("no room")

        default.report_fit = fail
    try:
        est.fit(make_data())
    except Exception as trouble:
        return type(trouble).__name__, str(trouble)
    return "no error"


def overlapping(rank, size, folder):
    return trouble_with(make_data().take(slice(90 * rank, 90 * rank + 100)))


def overlapping_unlabelled(rank, size, folder):
    """The same ten people under two labels."""
    return trouble_with(unlabelled(make_data().take(slice(90 * rank, 90 * rank + 100))))


def packs_of_other_shards(rank, size, folder):
    """The same people, but shards that cannot be dealt out alike."""
    return trouble_with(PackedChoices.open(folder / "pack") if rank == 0 else make_data())


def trouble_with(data):
    try:
        make_estimator().fit(data)
    except Exception as trouble:
        return type(trouble).__name__, str(trouble)
    return "no error"


def other_engine(rank, size, folder):
    try:
        make_estimator(method=MSLE(n_draws=20)).fit(make_data())
    except Exception as trouble:
        return type(trouble).__name__, str(trouble)
    return "no error"


def classic(rank, size, folder, steps=20, **settings):
    """The encoder through DistributedDataParallel, which one process runs on more pieces than the other."""
    training = Training(steps=steps, batch_size=64)
    method = SVI(polish=0, flow=None, n_samples=40, training=training, **settings)
    with mock.patch.object(chunks, "_CELLS", {"cpu": 800}):
        est = make_estimator(method=method, dtype="float32").fit(ragged(make_data()))
    share = est.diagnostics_.get("sbp_keep")
    return {"coef": est.coef_.to_numpy(), "log_likelihood": est.log_likelihood_, "share": share}


def masked(rank, size, folder):
    """Gradients through some situations, of a share that all find together."""
    return classic(rank, size, folder, steps=110, sbp="auto")


def lost(rank, size, folder):
    """The second process dies."""
    if rank == 1:
        import os

        from mxlogit.integration.marginal import MarginalLikelihood

        MarginalLikelihood.information = lambda *given: os._exit(3)
    try:
        make_estimator().fit(make_data())
    except ProcessError as trouble:
        return type(trouble).__name__, str(trouble)
    return "no error"


def results_file(jobs, rank, size, folder):
    return folder / f"{'-'.join(jobs)[:20]}-{size}-{rank}.pickle"


def run(jobs, rank, size, folder):
    """Do the jobs one after the other, and write their results."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if size > 1:
        store = dist.FileStore(str(results_file(jobs, "all", size, folder).with_suffix(".store")), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60))
    results = {}
    for job in jobs:
        results[job] = globals()[job](rank, size, folder)
        # After every job, since the last one may end a process.
        results_file(jobs, rank, size, folder).write_bytes(pickle.dumps(results))
