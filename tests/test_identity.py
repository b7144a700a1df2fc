"""What a fit is known by: digests of data that follow what is chosen from what, and from nothing else."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import rebuilt

import mxlogit.choices.packing as packing
import mxlogit.execution.identity as identity
from mxlogit import ChoiceData, ChoiceDataError, ChoiceDataWarning, SpecificationError, pack_choices
from mxlogit.execution.division import count_ambiguous, count_relabelled, share_people
from mxlogit.execution.identity import agree_on, describe_differences, digest_data, digest_people
from mxlogit.execution.people import People
from mxlogit.execution.processes import Communicator
from mxlogit.execution.shard_panels import StreamedPanels
from mxlogit.model.differences import difference_panels


def make_data(n=23, t=4, j=4, k=2, seed=0, ragged=True):
    """People with 1 to t situations of 2 to j alternatives; the first choice set is full."""
    rng = np.random.default_rng(seed)
    attributes = rng.normal(size=(n, t, j, k))
    observed = np.arange(t) < rng.integers(1, t + 1, size=(n, 1)) if ragged else np.ones((n, t), bool)
    available = np.arange(j) < rng.integers(2, j + 1, size=(n, t, 1)) if ragged else np.ones((n, t, j), bool)
    chosen = rng.integers(0, 2, size=(n, t))
    weights = 1.0 + rng.integers(0, 3, size=n)
    arrays = {"observed": observed, "available": available, "weights": weights}
    return ChoiceData.from_arrays(attributes, chosen, names=[f"x{i}" for i in range(k)], **arrays)


def each(data):
    return digest_people(difference_panels(data))


@pytest.mark.parametrize("seed", range(5))
def test_digests_of_people_do_not_know_padding_chunks_or_company(seed, monkeypatch):
    data = make_data(seed=seed)
    wanted = each(data)
    assert len(set(wanted)) == len(wanted) == 23
    panel = difference_panels(data)
    assert digest_people(panel.dense()) == wanted
    monkeypatch.setattr(identity, "PEOPLE_AT_ONCE", 3)
    assert digest_people(panel) == wanted
    order = torch.randperm(23, generator=torch.Generator().manual_seed(seed))
    assert each(data.take(order)) == [wanted[i] for i in order]
    alone = [digest for i in range(23) for digest in each(trimmed(data, i))]
    assert alone == wanted


def trimmed(data, person):
    """One person without any padding of situations."""
    one = data.take(torch.tensor([person]))
    count = int(one.observed.sum())
    parts = {name: getattr(one, name)[:, :count] for name in ("attributes", "available", "observed", "chosen")}
    return rebuilt(one, **parts)


def test_digests_in_shards_are_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_CELLS_PER_SHARD", 100)
    data = make_data()
    packed = pack_choices(data, tmp_path / "pack", dtype=torch.float64)
    assert len(packed.shards) > 3
    streamed = StreamedPanels(packed, data.names, torch.device("cpu"), torch.float64)
    assert digest_people(streamed) == each(data)
    assert digest_data(People.gather(streamed)) == digest_data(People.gather(difference_panels(data)))


def change(data, **parts):
    changed = {name: getattr(data, name).clone() for name in parts}
    for name, function in parts.items():
        function(changed[name])
    return rebuilt(data, **changed)


def set_cell(place, value):
    return lambda tensor: tensor.__setitem__(place, value)


@pytest.mark.parametrize(
    "parts",
    [
        {"attributes": set_cell((7, 0, 0, 1), 1.0 + 1e-12)},
        {"chosen": lambda chosen: chosen[7, 0].neg_().add_(1)},
        {"available": set_cell((7, 0, 3), False)},
        {"weights": set_cell(7, 9.0)},
        {"observed": set_cell((7, 3), False)},
    ],
)
def test_a_digest_follows_every_part_of_a_persons_data(parts):
    data = make_data(ragged=False)
    before, after = each(data), each(change(data, **parts))
    assert [i for i in range(23) if before[i] != after[i]] == [7]


def test_moving_an_alternative_to_the_next_situation_is_noticed():
    """The same rows in the same order, divided otherwise: 3 + 2 alternatives instead of 2 + 3."""
    x = np.random.default_rng(1).normal(size=(1, 2, 3, 1))
    x[0, :, 0] = 0.0
    first = [[[True, True, True], [True, True, False]]]
    second = [[[True, True, False], [True, True, True]]]
    y = x.copy()
    y[0, 1, 1:, 0] = x[0, 0, 2, 0], x[0, 1, 1, 0]
    one, other = (
        ChoiceData.from_arrays(a, np.zeros((1, 2), int), names=["x"], available=np.array(b))
        for a, b in ((x, first), (y, second))
    )
    rows = [difference_panels(data) for data in (one, other)]
    assert torch.equal(*(panel.available_rows().values for panel in rows))
    assert each(one) != each(other)


def test_differences_are_named_with_values_that_can_be_read():
    found = {"random": "z uniform", "priors": "1" * 90, "draws": "16"}
    wanted = {"random": "z normal", "priors": "2" * 90, "draws": "16"}
    assert describe_differences(found, wanted) == "other random (z uniform; here z normal), other priors"
    assert describe_differences({**wanted, "gone": "1"}, wanted) == "other gone (1; here none)"
    assert describe_differences(wanted, wanted) == ""


# -- who has what among processes -----------------------------------------------------------------


class Together(Communicator):
    """One of several processes, which are threads here."""

    def __init__(self, rank, size, barrier, table):
        self.rank, self.size, self.barrier, self.table = rank, size, barrier, table

    def gather(self, item):
        self.table[self.rank] = item
        self.barrier.wait(10)
        items = [self.table[rank] for rank in range(self.size)]
        self.barrier.wait(10)
        return items


def labelled(data, first):
    return replace(data, decision_makers=np.arange(first, first + data.n_decision_makers))


def share(*parts):
    """People of every process, and sentences of warnings."""
    size = len(parts)
    barrier, table = threading.Barrier(size), {}
    teams = [Together(rank, size, barrier, table) for rank in range(size)]
    with warnings.catch_warnings(record=True) as told, ThreadPoolExecutor(size) as pool:
        warnings.simplefilter("always")
        mine = list(pool.map(share_people, parts, teams, [torch.float64] * size))
    said = [str(entry.message) for entry in told if entry.category is ChoiceDataWarning]
    return [part.n_decision_makers for part in mine], said


def test_the_same_data_are_split():
    assert share(make_data(), make_data()) == ([11, 12], [])


def test_different_people_with_the_same_labels_all_take_part():
    counts, told = share(make_data(seed=1), make_data(seed=2), make_data(seed=3))
    assert counts == [23, 23, 23]
    assert len(told) == 1
    assert told[0].startswith("23 labels of decision makers are in the data of several processes")


def test_different_people_with_labels_of_their_own_take_part_without_a_word():
    assert share(make_data(seed=1), labelled(make_data(seed=2), 100)) == ([23, 23], [])
    # Whoever gives people other labels says that they are others, which may be a mistake where all choose the same.
    counts, said = share(make_data(seed=1), labelled(make_data(seed=1), 100))
    assert counts == [23, 23]
    assert "23 decision makers of a process have the very choices of decision makers" in str(said[0])


@pytest.mark.parametrize(
    "second",
    [
        make_data().take(slice(0, 10)),
        labelled(make_data().take(slice(5, 23)), 0),
        make_data().take(torch.arange(22, -1, -1)),
    ],
    ids=["a part", "a part under other labels", "another order"],
)
def test_people_in_two_processes_are_refused(second):
    with pytest.raises(ChoiceDataError, match="decision makers are in the data of several processes"):
        share(make_data(), second)


def binary_choices(seed, n=200):
    """One choice of two alternatives by one dummy: most people have a like one."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, size=(n, 1, 2, 1)).astype(float)
    return ChoiceData.from_arrays(x, rng.integers(0, 2, size=(n, 1)), names=["x"])


def test_people_who_choose_alike_by_chance_are_different_people():
    counts, told = share(binary_choices(1), binary_choices(2))
    assert counts == [200, 200]
    assert len(told) == 1


def test_one_person_in_two_processes_among_unlike_ones_is_found():
    people = [np.arange(3).astype(str)] * 2
    with pytest.raises(ChoiceDataError, match=r"1 decision makers .* \(first: \['2'"):
        count_ambiguous(people, [[b"a", b"b", b"c"], [b"c", b"d", b"e"]])
    assert count_ambiguous(people, [[b"a", b"b", b"c"], [b"d", b"e", b"f"]]) == 3


def test_a_person_alone_is_no_team():
    data = make_data()
    assert share_people(data, Communicator(), torch.float64) is data


def test_the_same_people_under_other_labels_are_counted():
    """Most of a process's people; not those whom few alternatives make alike, nor some by chance."""
    contents = [b"a", b"b", b"c", b"d"]
    assert count_relabelled([contents, contents[::-1]]) == 4
    assert count_relabelled([contents, [b"d", b"e", b"f", b"g"]]) == 0
    alike = [b"a", b"a", b"b", b"b", b"a", b"b"]
    assert count_relabelled([alike, alike]) == 0


class Two(Communicator):
    """This process and another, which has other facts."""

    size = 2

    def __init__(self, other):
        self.other = other

    def gather(self, item):
        return [item, self.other]


def test_processes_agree_on_what_is_asked():
    agree_on(Two({"draws": "16", "dtype": "float32"}), {"draws": "16", "dtype": "float32"})
    with pytest.raises(SpecificationError, match=r"processes 1 and 2 .* different fits: draws \(16; 64\)\. Give"):
        agree_on(Two({"draws": "64", "dtype": "float32"}), {"draws": "16", "dtype": "float32"})


def test_attributes_in_another_order_are_said():
    data = make_data()
    with pytest.raises(ChoiceDataError, match=r"different orders: \['x0', 'x1'\] and \['x1', 'x0'\]"):
        share_people(data, Two(("x1", "x0")), torch.float32)
