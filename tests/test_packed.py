"""Choices packed on disk: the same as in memory, whole or not at all, and honest about damage."""

import json
import os

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import mxlogit.choices.packing as packing
import mxlogit.choices.sources as sources
from mxlogit import MSLE, VI, ChoiceDataError, MixedLogit, PackedChoices, pack_choices
from mxlogit.choices import read_frame
from mxlogit.choices.moments import AttributeMoments
from mxlogit.choices.packed import MANIFEST, PEOPLE
from mxlogit.execution.shard_panels import StreamedPanels
from mxlogit.model.differences import difference_panels
from mxlogit.spec import Columns

pytestmark = pytest.mark.filterwarnings("ignore::mxlogit.ConvergenceWarning")
COLUMNS = {"decision_maker": "person", "situation": "task", "alternative": "mode", "choice": "chosen"}
NAMES = ["cost", "time"]


def make_frame(n=40, seed=0, labels=None):
    """Ragged panels, choice sets of two or three of three modes."""
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(n):
        taste = rng.normal([-1.0, 0.5], 1.0)
        for task in range(1 + person % 4):
            modes = ["bus", "car", "train"] if (person + task) % 3 else ["bus", "train"]
            x = rng.normal(size=(len(modes), 2))
            utility = x @ taste + rng.gumbel(size=len(modes))
            for mode, u, row in zip(modes, utility, x, strict=True):
                rows.append((person, task, mode, u == utility.max(), *row))
    frame = pd.DataFrame(rows, columns=["person", "task", "mode", "chosen", *NAMES])
    if labels is not None:
        frame["person"] = frame["person"].map(labels)
    return frame


@pytest.fixture
def frame():
    return make_frame()


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(packing, "_CELLS_PER_SHARD", 150)
    monkeypatch.setattr(sources, "_BATCH_ROWS", 37)


def estimator(**more):
    return MixedLogit(
        random=NAMES,
        random_state=3,
        method=VI(draws=16, n_samples=16, correct=False),
        constants=True,
        **COLUMNS,
        **more,
    )


def in_memory(frame):
    from mxlogit.choices import read_frame
    from mxlogit.spec import Columns

    return read_frame(frame, Columns(*COLUMNS.values()), NAMES).data


def write_source(frame, kind, folder):
    half = len(frame) // 2
    if kind == "parquet":
        frame.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    if kind == "directory":
        (folder / "rows").mkdir()
        frame[:half].to_parquet(folder / "rows" / "b.parquet")
        frame[half:].to_parquet(folder / "rows" / "a.parquet")
        return str(folder / "rows")
    if kind == "csv":
        frame.to_csv(folder / "rows.csv", index=False)
        return [folder / "rows.csv"]
    if kind == "frames":
        return (frame[i : i + 50] for i in range(0, len(frame), 50))
    if kind == "polars":
        return iter([pl.from_pandas(frame[:half]), pl.from_pandas(frame[half:])])
    return {"frame": frame, "arrow": pa.Table.from_pandas(frame), "data": in_memory(frame)}[kind]


@pytest.mark.parametrize("kind", ["parquet", "directory", "csv", "frames", "polars", "frame", "arrow", "data"])
def test_a_pack_holds_what_the_frame_says(frame, tmp_path, kind):
    shuffled = frame.sample(frac=1.0, random_state=1)
    source = write_source(frame if kind == "data" else shuffled, kind, tmp_path)
    packed = pack_choices(source, tmp_path / "pack", names=NAMES, **COLUMNS)
    data = in_memory(frame)
    assert len(packed.shards) > 3
    assert (packed.n_decision_makers, packed.n_situations) == (data.n_decision_makers, data.n_situations)
    assert packed.decision_makers.tolist() == data.decision_makers.tolist()
    assert packed.alternatives.tolist() == ["bus", "car", "train"]
    order = torch.arange(data.n_decision_makers)
    streamed = StreamedPanels(packed, NAMES, torch.device("cpu"), torch.float32)
    whole, wanted = streamed.take(order), difference_panels(data, dtype=torch.float32)
    assert torch.equal(whole.values, wanted.values)
    assert torch.equal(whole.n_situations, wanted.n_situations)
    torch.testing.assert_close(packed.moments().gram, AttributeMoments.of(data).gram)
    assert not list(tmp_path.glob("*.partial"))


def test_shards_equal_arrays(frame, tmp_path):
    """The same people, the same draws: the same fit, and the same people in it."""
    packed = pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    there, here = estimator().fit(packed), estimator().fit(frame)
    pd.testing.assert_series_equal(there.coef_, here.coef_, rtol=1e-5, atol=5e-6)
    # In double precision the two differ by how the pack rounds attributes to single precision, and by nothing else.
    double = [estimator().set_params(dtype="float64").fit(x).coef_ for x in (packed, frame)]
    pd.testing.assert_series_equal(*double, rtol=1e-6, atol=2e-7)
    assert there.log_likelihood_ == pytest.approx(here.log_likelihood_, abs=1e-3)
    assert there.n_situations_ == here.n_situations_
    people = here.individual_coefficients()
    again = there.individual_coefficients(PackedChoices.open(tmp_path / "pack"))
    for found in (there.individual_coefficients(), again):
        pd.testing.assert_frame_equal(found, people, rtol=1e-4, atol=1e-4)
    assert there.score(packed) == pytest.approx(here.score(frame), rel=1e-5)


def test_other_engines_read_a_pack_into_memory(frame, tmp_path):
    packed = pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    methods = MSLE(n_draws=50, n_samples=100, check_draws=False)
    there = estimator().set_params(method=methods, dtype="float64").fit(packed)
    here = estimator().set_params(method=methods, dtype="float64").fit(frame)
    np.testing.assert_allclose(there.coef_, here.coef_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(there.individual_coefficients(), here.individual_coefficients(), rtol=1e-3, atol=1e-3)


def test_labels_and_weights_survive(tmp_path):
    frame = make_frame(labels=lambda person: f"p{person:03d}")
    frame["w"] = 1.0 + frame["person"].str[1:].astype(int) % 3
    packed = pack_choices(frame, tmp_path / "pack", names=NAMES, weights="w", **COLUMNS)
    assert packed.decision_makers[:3].tolist() == ["p000", "p001", "p002"]
    assert packed.weights[:4].tolist() == [1.0, 2.0, 3.0, 1.0]
    # In double precision: sums over shards are rounded in another order, by which vague sds move by more than 1e-5.
    there, here = (estimator(weights="w", dtype="float64").fit(data).coef_ for data in (packed, frame))
    pd.testing.assert_series_equal(there, here, rtol=1e-7, atol=1e-8)


def test_alternatives_without_recurring_labels(tmp_path):
    """Every choice set its own labels: positions count, and choice sets may grow from shard to shard."""
    frame = make_frame()
    frame["mode"] = np.arange(len(frame))
    packed = pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    assert packed.alternatives is None
    est = MixedLogit(random=NAMES, random_state=3, method=VI(draws=16, n_samples=16, correct=False), **COLUMNS)
    there, here = est.fit(packed).coef_.copy(), est.fit(frame).coef_
    pd.testing.assert_series_equal(there, here, rtol=1e-5, atol=1e-6)


def test_shards_of_choice_sets_of_other_sizes(tmp_path, monkeypatch):
    """Without labels each shard is as wide as its own sets: two alternatives each in the first ones, four in the last."""
    frame = make_frame()
    frame["mode"] = np.arange(len(frame))
    pairs = frame.groupby(["person", "task"]).cumcount() < 2
    chosen_late = frame[~pairs & (frame["chosen"] == 1)][["person", "task"]].itertuples(index=False)
    frame.loc[frame.set_index(["person", "task"]).index.isin(list(map(tuple, chosen_late))), "chosen"] = False
    first = frame.groupby(["person", "task"]).cumcount() == 0
    none = frame.groupby(["person", "task"])["chosen"].transform("sum") == 0
    frame.loc[none & first, "chosen"] = True
    narrow = frame[pairs | (frame["person"] >= 40)].reset_index(drop=True)
    monkeypatch.setattr(packing, "_CELLS_PER_SHARD", 60)
    packed = pack_choices(narrow, tmp_path / "pack", names=NAMES, **COLUMNS)
    whole = read_frame(narrow, Columns("person", "task", "mode", "chosen"), NAMES).data
    assert len({shard.alternatives for shard in packed.shards}) > 1
    starts = packed.first_places
    for place, shard in enumerate(packed.shards):
        part, same = packed.read(place), whole.take(slice(starts[place], starts[place + 1]))
        assert part.attributes.shape[2:] == (packed.n_alternatives, 2)
        found, expected = (difference_panels(x, [0, 1], torch.float32).available_rows() for x in (part, same))
        torch.testing.assert_close(found.values, expected.values)
        torch.testing.assert_close(found.sizes, expected.sizes)
        assert shard.people == part.n_decision_makers
    panels = StreamedPanels(packed, NAMES, torch.device("cpu"), torch.float32)
    some = torch.arange(0, len(panels), 7)
    expected = difference_panels(whole.take(some), [0, 1], torch.float32)
    torch.testing.assert_close(panels.take(some).available_rows().values, expected.available_rows().values)
    assert packed.empty().attributes.shape == (0, 1, packed.n_alternatives, 2)


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5])
def test_a_file_of_people_that_was_cut_off_is_noticed(frame, tmp_path, keep):
    pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    whole = (tmp_path / "pack" / PEOPLE).read_bytes()
    (tmp_path / "pack" / PEOPLE).write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(ChoiceDataError, match="damaged, or of another pack"):
        PackedChoices.open(tmp_path / "pack")


def test_more_shards_than_may_be_open(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_OPEN_BUCKETS", 2)
    packed = pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    assert packed.decision_makers.tolist() == list(range(40))


def test_an_interrupted_packing_leaves_nothing_that_opens(frame, tmp_path):
    def source():
        yield frame[:100]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_choices(source(), tmp_path / "pack", names=NAMES, **COLUMNS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ChoiceDataError, match="not a complete pack"):
        PackedChoices.open(tmp_path / "pack")
    pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)


def test_what_a_killed_packing_left_is_cleared_away(frame, tmp_path):
    (tmp_path / "pack.partial").mkdir()
    (tmp_path / "pack.partial" / MANIFEST).write_text("{")
    packed = pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    assert packed.n_decision_makers == 40
    assert [p.name for p in tmp_path.iterdir()] == ["pack"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "shard 2 of .* damaged: it has .* bytes instead of"),
        (lambda file: file.unlink(), "shard 2 of .* damaged: it is missing"),
        (lambda file: flip(file, -20), "shard 2 of .* damaged: its contents have changed"),
    ],
)
def test_a_damaged_shard_is_named(frame, tmp_path, harm, words):
    packed = pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    harm(tmp_path / "pack" / packed.shards[1].file)
    with pytest.raises(ChoiceDataError, match=words):
        estimator().fit(packed)
    with pytest.raises(ChoiceDataError, match=words):
        estimator().fit(PackedChoices.open(tmp_path / "pack"))


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 255
    file.write_bytes(bytes(content))


def test_an_unknown_format_is_refused(frame, tmp_path):
    pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    manifest = tmp_path / "pack" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": "mxlogit choices 99"}))
    with pytest.raises(ChoiceDataError, match="format 'mxlogit choices 99'"):
        PackedChoices.open(tmp_path / "pack")


def test_people_of_another_pack_are_refused(tmp_path):
    """As many people, other weights: sizes and shards are right, and yet it is not this pack."""
    frame = make_frame().assign(w=1.0)
    for name, weight in (("pack", 1.0), ("other", 2.0)):
        pack_choices(frame.assign(w=weight), tmp_path / name, names=NAMES, weights="w", **COLUMNS)
    (tmp_path / "pack" / PEOPLE).write_bytes((tmp_path / "other" / PEOPLE).read_bytes())
    with pytest.raises(ChoiceDataError, match="it is damaged, or of another pack"):
        PackedChoices.open(tmp_path / "pack")


def test_a_shard_that_was_replaced_since_it_was_read_is_noticed(frame, tmp_path):
    packed = pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    assert packed.read(1).n_decision_makers > 0
    file = tmp_path / "pack" / packed.shards[1].file
    flip(file, -20)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    with pytest.raises(ChoiceDataError, match="its contents have changed"):
        packed.read(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="cost"), "no columns \\['cost'\\]"),
        (lambda f: f.assign(cost=np.where(f.index == 100, np.nan, f.cost)), "'cost' has 1 missing.*person 15"),
        (lambda f: f.assign(chosen=False), "no chosen alternative|exactly one"),
        (lambda f: f.assign(person=f.person.where(f.index != 3)), "missing values"),
        (lambda f: f.iloc[:0], "no rows"),
    ],
)
def test_wrong_rows_are_told_and_nothing_is_left(frame, tmp_path, change, words):
    with pytest.raises(ChoiceDataError, match=words):
        pack_choices(change(frame), tmp_path / "pack", names=NAMES, **COLUMNS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "words"), [(3, "the source must be"), ("nowhere.parquet", "there is no file"), ([], "no rows")]
)
def test_wrong_sources(tmp_path, source, words):
    with pytest.raises(ChoiceDataError, match=words):
        pack_choices(source, tmp_path / "pack", names=NAMES, **COLUMNS)


def test_mixed_files_are_refused(frame, tmp_path):
    (tmp_path / "rows").mkdir()
    frame.to_csv(tmp_path / "rows" / "a.csv")
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "rows" / "b.parquet")
    with pytest.raises(ChoiceDataError, match="of one kind"):
        pack_choices(tmp_path / "rows", tmp_path / "pack", names=NAMES, **COLUMNS)


def test_nothing_is_overwritten(frame, tmp_path):
    pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)
    with pytest.raises(ChoiceDataError, match="exists"):
        pack_choices(frame, tmp_path / "pack", names=NAMES, **COLUMNS)


def test_unknown_attribute_of_a_pack(frame, tmp_path):
    packed = pack_choices(frame, tmp_path / "pack", names=["cost"], **COLUMNS)
    with pytest.raises(ChoiceDataError, match="no attribute \\['time'\\]"):
        estimator().fit(packed)
