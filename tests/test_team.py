"""Two and three processes against one: the same answer, and the same end when one of them fails."""

import multiprocessing
import os
import pickle
import warnings
from unittest import mock

import numpy as np
import pytest
import team_jobs
import torch

from mxlogit import pack_choices
from mxlogit.execution.processes import Communicator, current_team

SAME = ["same_data", "own_people", "nobody_here", "shards", "many_people"]
QUICK = ["own_people"]
FAILING = [("failing", "ChoiceDataError"), ("failing_in_a_pass", "MemoryError")]
OVERLAPPING = ["overlapping", "overlapping_unlabelled"]
WRONG = ["failing", "failing_in_a_pass", "failing_late", *OVERLAPPING, "packs_of_other_shards", "other_engine"]


def run_team(jobs, size, folder, timeout=400):
    """Results of every process; one that dies has those of the jobs before."""
    # Where that is possible they are forked from a process that has imported what all need, and done nothing else.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["mxlogit", "pyro.infer", "torch._dynamo"])
    processes = [
        context.Process(target=team_jobs.run, args=(jobs, rank, size, folder), daemon=True) for rank in range(size)
    ]
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
        for process in processes:
            process.start()
    try:
        for process in processes:
            process.join(timeout)
    finally:
        for process in processes:
            process.kill()
    files = [team_jobs.results_file(jobs, rank, size, folder) for rank in range(size)]
    assert all(file.exists() for file in files), [process.exitcode for process in processes]
    return [pickle.loads(file.read_bytes()) for file in files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import mxlogit.choices.packing as packing

    folder = tmp_path_factory.mktemp("team")
    cells, packing._CELLS_PER_SHARD = packing._CELLS_PER_SHARD, 200 * 5 * 5 * 8
    try:
        assert len(pack_choices(team_jobs.make_data(), folder / "pack").shards) == 2
    finally:
        packing._CELLS_PER_SHARD = cells
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"same_data": team_jobs.same_data(0, 1, folder)}


def check_covariates(team, alone):
    """Averages over covariates are those of everybody, and people's own tastes have their own covariates."""
    for process in team:
        np.testing.assert_allclose(process["covariates"]["coef"], alone["coef"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(process["covariates"]["tastes"], alone["tastes"], rtol=1e-4)
    mine = np.concatenate([process["covariates"]["mine"] for process in team])
    np.testing.assert_allclose(mine, alone["mine"], atol=5e-3)


@pytest.fixture(scope="module")
def alone_of_many(folder):
    return run_team(["many_people"], 1, folder)[0]


@pytest.fixture(scope="module")
def team(folder):
    """Two processes for all jobs; in the last one the second process dies."""
    return run_team([*WRONG, "classic", "covariates", *QUICK, "lost"], 2, folder)


@pytest.fixture(scope="module", params=[2, 3])
def larger_team(request, folder):
    return run_team([*WRONG, "classic", *SAME], request.param, folder)


def check_equal(team, wanted, job):
    """All processes have the answer of one; every person is with one of them."""
    for result in (process[job] for process in team):
        np.testing.assert_allclose(result["coef"], wanted["coef"], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(result["sd"], wanted["sd"], rtol=1e-6, atol=1e-8)
        assert result["log_likelihood"] == pytest.approx(wanted["log_likelihood"], rel=1e-8)
        assert (result["people"], result["situations"]) == (wanted["people"], wanted["situations"])
        assert result["passes"] == pytest.approx(wanted["passes"], rel=1e-6)
        assert result["k"] == pytest.approx(wanted["k"], rel=1e-6)
    mine = [label for process in team for label in process[job]["mine"]]
    assert len(mine) == team_jobs.N
    if job == "own_people":
        assert all(process[job]["mine"] == list(range(len(process[job]["mine"]))) for process in team)
        return
    assert sorted(mine) == list(range(team_jobs.N))
    if job == "nobody_here":
        assert [len(process[job]["mine"]) for process in team] == [0] * (len(team) - 1) + [team_jobs.N]


def check_failing(team, job, expected):
    """One failing process ends all with its message."""
    kind, message = team[1][job]
    assert kind == expected
    for rank, process in enumerate(team):
        if rank != 1:
            assert process[job][0] == "ProcessError"
            assert f"process 1 of {len(team)}: {kind}: {message}" in process[job][1]


def check_failing_late(team):
    assert team[0]["failing_late"] == ("MemoryError", "no room")
    for process in team[1:]:
        assert process["failing_late"][0] == "ProcessError"
        assert f"process 0 of {len(team)}: MemoryError: no room" in process["failing_late"][1]


def check_overlapping(team, job):
    for process in team:
        kind, message = process[job]
        assert kind == "ChoiceDataError"
        assert f"{10 * (len(team) - 1)} decision makers are in the data of several processes (first: ['" in message


def check_packs(team):
    for process in team:
        kind, message = process["packs_of_other_shards"]
        assert kind == "ChoiceDataError"
        assert "cannot be split alike" in message


def check_other_engine(team):
    for process in team:
        assert process["other_engine"][0] == "SpecificationError"
        assert "method='vi' only" in process["other_engine"][1]


def check_classic(team):
    """One guide: the same weights, so the same posterior, everywhere; as good as that of one process."""
    for process in team:
        np.testing.assert_array_equal(process["classic"]["coef"], team[0]["classic"]["coef"])
        assert process["classic"]["log_likelihood"] == pytest.approx(team[0]["classic"]["log_likelihood"], rel=1e-9)


@pytest.mark.parametrize("job", QUICK)
def test_two_processes_equal_one(team, alone, job):
    check_equal(team, alone["same_data"], job)


def test_covariates_are_those_of_everybody(team, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = team_jobs.covariates(0, 1, folder)
    check_covariates(team, alone)


@pytest.mark.slow
@pytest.mark.parametrize("job", SAME)
def test_several_processes_equal_one(larger_team, alone, alone_of_many, job):
    check_equal(larger_team, alone_of_many[job] if job == "many_people" else alone["same_data"], job)


@pytest.mark.parametrize(("job", "expected"), FAILING)
def test_one_failing_process_ends_all_with_its_message(team, job, expected):
    check_failing(team, job, expected)


def test_a_failure_after_the_last_pass_ends_all(team):
    check_failing_late(team)


@pytest.mark.parametrize("job", OVERLAPPING)
def test_people_of_several_processes_are_an_error_for_all(team, job):
    check_overlapping(team, job)


def test_the_same_people_in_other_packs_are_an_error_for_all(team):
    check_packs(team)


def test_other_engines_say_that_they_need_one_process(team):
    check_other_engine(team)


def test_the_encoder_is_trained_by_all(team):
    check_classic(team)


@pytest.mark.slow
def test_what_goes_wrong_in_several_processes(larger_team):
    for job, expected in FAILING:
        check_failing(larger_team, job, expected)
    check_failing_late(larger_team)
    for job in OVERLAPPING:
        check_overlapping(larger_team, job)
    check_packs(larger_team)
    check_other_engine(larger_team)
    check_classic(larger_team)


@pytest.mark.slow
def test_the_share_of_situations_is_found_by_all(folder):
    first, second = (process["masked"] for process in run_team(["masked"], 2, folder))
    np.testing.assert_array_equal(first["coef"], second["coef"])
    assert first["share"] == second["share"] != 0.5


def test_a_lost_process_is_noticed(team):
    assert "lost" not in team[1]
    kind, message = team[0]["lost"]
    assert kind == "ProcessError"
    assert "process 0 of 2 lost contact with another process" in message


def test_alone_without_a_process_group():
    team = current_team()
    assert type(team) is Communicator
    assert team.gather("x") == ["x"]
    (total,) = team.all_reduce_sum(torch.ones(2))
    assert total.dtype == torch.float64
