"""Saved models: the same answers to the last bit in a new process, and damaged or foreign folders refused."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mxlogit import (
    DADVI,
    MCMC,
    MSLE,
    SVI,
    VI,
    ConvergenceWarning,
    MixedLogit,
    Priors,
    SpecificationError,
    Training,
    pack_choices,
)
from mxlogit.simulate import simulate_choices

ENGINES = {
    "vi": VI(n_samples=300, correct=False),
    "flow": VI(flow="spline", n_samples=300, correct=False),
    "svi": SVI(training=Training(steps=30)),
    "dadvi": DADVI(),
    "msle": MSLE(n_draws=60, check_draws=False),
    "mcmc": MCMC(warmup=30, samples=60),
}
# Prints a digest of everything that a user reads, from a folder and a frame.
READ = """
import sys, hashlib, pandas as pd, torch
torch.set_num_threads(1)
from mxlogit import MixedLogit
est, frame = MixedLogit.load(sys.argv[1]), pd.read_pickle(sys.argv[2])
parts = [est.summary(), est.predict_proba(frame, interval=0.9), est.individual_coefficients(statistic=("mean", 0.9)),
         est.wtp("z", "x"), est.shares(frame, "individual"), est.coef_]
print(hashlib.sha256("".join(part.to_csv(float_format="%.17g") for part in parts).encode()).hexdigest(), est.score(frame))
"""


@pytest.fixture(scope="module")
def frame():
    random = {"z": (0.7, 0.9), "w": (0.3, 0.5)}
    return simulate_choices(40, 4, 3, fixed={"x": -0.6}, random=random, random_state=2)[0]


def fit(frame, method=ENGINES["vi"], **options):
    request = {"fixed": ["x"], "random": ["z", "w"], "random_state": 1, "method": method, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MixedLogit(**request).fit(frame)


@pytest.fixture(scope="module")
def est(frame):
    return fit(frame)


@pytest.fixture
def saved(est, tmp_path):
    est.save(tmp_path / "model")
    return tmp_path / "model"


def same(one, other, frame):
    pd.testing.assert_frame_equal(one.summary(), other.summary(), rtol=0, atol=0)
    pd.testing.assert_series_equal(one.predict_proba(frame), other.predict_proba(frame), rtol=0, atol=0)
    people = one.individual_coefficients(), other.individual_coefficients()
    pd.testing.assert_frame_equal(*people, rtol=0, atol=0)
    assert one.score(frame) == other.score(frame)
    assert str(one.diagnostics_) == str(other.diagnostics_)
    assert str(one.get_params()) == str(other.get_params())
    assert (one.n_decision_makers_, one.n_situations_) == (other.n_decision_makers_, other.n_situations_)


def digest(folder, frame, tmp_path):
    frame.to_pickle(tmp_path / "frame.pkl")
    command = [sys.executable, "-W", "ignore", "-c", READ, str(folder), str(tmp_path / "frame.pkl")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", list(ENGINES))
def test_every_engine_answers_the_same_after_loading(frame, tmp_path, name):
    est = fit(frame, ENGINES[name])
    est.save(tmp_path / "model")
    same(est, MixedLogit.load(tmp_path / "model"), frame)


@pytest.mark.parametrize("name", ["vi", "msle"])
def test_two_new_processes_print_the_same_digits(frame, tmp_path, name):
    """One of them reads what the other, and not this one, has saved."""
    est = fit(frame, ENGINES[name])
    est.save(tmp_path / "model")
    first = digest(tmp_path / "model", frame, tmp_path)
    MixedLogit.load(tmp_path / "model").save(tmp_path / "again")
    assert digest(tmp_path / "again", frame, tmp_path) == first
    assert float(first.split()[1]) == est.score(frame)


def test_labels_of_every_kind(frame, tmp_path):
    labels = {
        "text": frame["id"].map("person {}".format),
        "dates": pd.Timestamp("2026-01-01") + pd.to_timedelta(frame["id"], unit="D"),
        "floats": frame["id"] + 0.5,
        "whole": frame["id"].astype("int16"),
    }
    for name, values in labels.items():
        some = frame.assign(id=values)
        est = fit(some, ENGINES["msle"])
        est.save(tmp_path / name)
        loaded = MixedLogit.load(tmp_path / name)
        same(est, loaded, some)
        pd.testing.assert_index_equal(loaded.individual_coefficients().index, est.individual_coefficients().index)


def test_settings_of_every_kind(frame, tmp_path):
    """Constants, weights, priors, blocks, ragged panels, lognormals, and a column whose taste is held at zero."""
    some = frame.drop(frame.index[(frame["id"] % 3 == 0) & (frame["situation"] > 1)]).assign(weight=1.5)
    requests = {
        "constants": {"constants": True, "base_alternative": "a2"},
        "weights": {"weights": "weight", "weights_sum": "given"},
        "priors": {"priors": Priors(location_scale=3.0), "correlated": [["z"], ["w"]]},
        "wrong sign": {"random": {"z": "lognormal", "w": "negative_lognormal"}},
        "money": {"random": {"z": "normal"}, "scale": "x"},
    }
    for name, request in requests.items():
        est = fit(some, **request)
        est.save(tmp_path / name)
        same(est, MixedLogit.load(tmp_path / name), some)


def test_packed_choices_are_read_from_their_place(frame, tmp_path):
    packed = pack_choices(frame, tmp_path / "pack", names=["x", "z", "w"])
    est = fit(packed)
    est.save(tmp_path / "model")
    same(est, MixedLogit.load(tmp_path / "model"), frame)
    (tmp_path / "pack").rename(tmp_path / "moved")
    with pytest.raises(Exception, match="pack"):
        MixedLogit.load(tmp_path / "model")


def test_a_saved_model_is_replaced_and_anything_else_is_not(est, frame, saved, tmp_path):
    fit(frame, ENGINES["msle"]).save(saved)
    assert MixedLogit.load(saved).method.n_draws == 60
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    for path in (tmp_path / "notes", tmp_path / "notes" / "thesis.txt"):
        with pytest.raises(SpecificationError, match="something else"):
            est.save(path)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes"]


def test_a_generator_is_left_out(frame, tmp_path):
    est = fit(frame, random_state=np.random.default_rng(3))
    est.save(tmp_path / "model")
    loaded = MixedLogit.load(tmp_path / "model")
    assert loaded.random_state is None
    pd.testing.assert_frame_equal(est.summary(), loaded.summary(), rtol=0, atol=0)


def test_what_cannot_be_saved_says_so(frame, tmp_path):
    est = fit(frame)
    est.set_params(base_alternative=object())
    with pytest.raises(SpecificationError, match="cannot be saved"):
        est.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_subclasses_load_as_themselves(frame, saved):
    class Mine(MixedLogit):
        pass

    assert type(Mine.load(saved)) is Mine


def words_of(folder):
    return json.loads((folder / "model.json").read_text())


def rewrite(folder, change):
    words = words_of(folder)
    change(words)
    (folder / "model.json").write_text(json.dumps(words))


def without(folder, name):
    (folder / name).unlink()


def cut(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])


def flip(folder):
    content = bytearray((folder / "tensors.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "tensors.safetensors").write_bytes(bytes(content))


def resave(folder, change):
    """Tensors of a file that is whole, with its checksum, but not those of the description."""
    import hashlib

    tensors = load_file(folder / "tensors.safetensors")
    change(tensors)
    save_file(tensors, folder / "tensors.safetensors")
    checksum = hashlib.sha256((folder / "tensors.safetensors").read_bytes()).hexdigest()
    rewrite(folder, lambda words: words.update(checksum=checksum))


def facts(words):
    return words["content"]["facts"]["items"]


DAMAGES = {
    "no description": (lambda f: without(f, "model.json"), "no saved model"),
    "no tensors": (lambda f: without(f, "tensors.safetensors"), "is missing"),
    "half a description": (lambda f: cut(f, "model.json", 0.5), "cannot be read"),
    "half of the tensors": (lambda f: cut(f, "tensors.safetensors", 0.5), "not the file that was written"),
    "empty description": (lambda f: cut(f, "model.json", 0.0), "cannot be read"),
    "empty tensors": (lambda f: cut(f, "tensors.safetensors", 0.0), "not the file that was written"),
    "a flipped bit": (flip, "not the file that was written"),
    "a newer format": (lambda f: rewrite(f, lambda w: w.update(format=2)), "Upgrade mxlogit"),
    "another kind": (lambda f: rewrite(f, lambda w: w.update(kind="sklearn")), "is not of a saved model"),
    "a list": (lambda f: (f / "model.json").write_text("[1, 2]"), "is not of a saved model"),
    "no content": (lambda f: rewrite(f, lambda w: w.pop("content")), "has no content"),
    "no facts": (lambda f: rewrite(f, lambda w: w["content"].pop("facts")), "description does not fit"),
    "unknown class": (lambda f: rewrite(f, lambda w: facts(w)[0][1].update(kind="Popen")), "description does not fit"),
    "unknown argument": (
        lambda f: rewrite(f, lambda w: facts(w)[0][1]["arguments"].update(shell=True)),
        "description does not fit",
    ),
    "a missing tensor": (lambda f: resave(f, lambda t: t.pop("t3")), "description does not fit"),
    "binary": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_models_are_refused(saved, damage):
    change, words = DAMAGES[damage]
    change(saved)
    with pytest.raises(SpecificationError, match=words):
        MixedLogit.load(saved)


def test_places_without_a_model_are_refused(tmp_path):
    with pytest.raises(SpecificationError, match="is no folder"):
        MixedLogit.load(tmp_path / "nothing")
    torch.save({"a": 1}, tmp_path / "model.pt")
    with pytest.raises(SpecificationError, match="is no folder"):
        MixedLogit.load(tmp_path / "model.pt")
