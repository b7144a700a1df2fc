"""Identity of a fit: the data, model and settings that a file on disk belongs to.

A file from which a fit resumes holds the identity of the fit that wrote it and is rejected by any other fit. This
module is the only one that hashes data; it depends on neither files nor engines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from mxlogit.choices.chunks import PEOPLE_AT_ONCE
from mxlogit.errors import SpecificationError
from mxlogit.execution.people import PanelSource, People
from mxlogit.execution.processes import Communicator
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels

# Properties of a fit by name, as text that is equal for equal fits.
Identity = dict[str, str]

# Length of the longest value repeated in a message, in characters.
_READABLE = 70
# Hexadecimal digits of the digest of a data set.
_DIGITS = 16


def digest_people(panels: PanelSource) -> list[bytes]:
    """Compute a digest of each person's data (SHA-256, 32 bytes each).

    Parameters
    ----------
    panels : PanelSource
        Choices of n people.

    Returns
    -------
    list of bytes, length n
        Digests of the differences of available alternatives by situation, the number of situations and the weight.
        They do not depend on padding, chunks or device, but on the floating point type.
    """
    return [digest for _, panel in panels.chunks(PEOPLE_AT_ONCE) for digest in _digest_chunk(panel)]


def _digest_chunk(panel: Panels) -> Iterator[bytes]:
    # Situations with a single alternative are indistinguishable from padding and equally uninformative.
    available = panel.available_rows()
    rows, lengths = available.values.cpu().contiguous().numpy(), available.sizes.cpu().numpy()
    facts = torch.stack([panel.weights.double(), panel.n_situations.double()], 1).cpu().numpy()
    row_ends, length_ends = (np.cumsum(count.cpu().numpy()) for count in (available.n_rows, available.n_situations))
    row_start = length_start = 0
    for fact, row_end, length_end in zip(facts, row_ends, length_ends, strict=True):
        digest = hashlib.sha256(fact.tobytes())
        digest.update(lengths[length_start:length_end].tobytes())
        digest.update(rows[row_start:row_end].tobytes())
        row_start, length_start = row_end, length_end
        yield digest.digest()


def digest_data(people: People) -> str:
    """Compute one digest of the data of all processes, which depends on the order of people."""
    own = hashlib.sha256(b"".join(digest_people(people.panels))).digest()
    return hashlib.sha256(b"".join(people.team.gather(own))).hexdigest()[:_DIGITS]


def identify_fit(
    model: MixedLogitModel, people: People, settings: object, seed: int, *, engine: str, without: Sequence[str]
) -> Identity:
    """Return the identity of a fit.

    Parameters
    ----------
    model : MixedLogitModel
        Mixed logit model.
    people : People
        Decision makers of all processes.
    settings : object
        Settings of the engine.
    seed : int
        Seed of the fit.
    engine : str
        Name of the engine, which the class of ``settings`` need not have.
    without : sequence of str
        Settings that may change between a fit and its resumption.

    Returns
    -------
    dict of str to str
    """
    like = people.like
    return {
        "data": f"{len(people)} people, digest {digest_data(people)}",
        **identify_model(model),
        **describe_settings(settings, without),
        "method": engine,
        "dtype": f"{like.dtype} on {like.device.type}",
        "seed from random_state": str(seed),
        "processes": str(people.team.size),
        "version": version("mxlogit"),
    }


def identify_model(model: MixedLogitModel) -> Identity:
    """Return coefficients, families, correlated pairs, the scale column, held values and priors of a model."""
    space, mixing, prior = model.space, model.mixing, model.prior
    names = [*space.fixed, *space.random]
    families = [family.name for family in mixing.families]
    place = mixing.scale_position
    numbers = torch.cat([prior.mean, prior.deviation, prior.sd_scale]).tolist()
    return {
        "fixed": ", ".join(space.fixed) or "none",
        "random": ", ".join(f"{name} {family}" for name, family in zip(space.random, families, strict=True)) or "none",
        "correlated": ", ".join(f"{space.random[a]}:{space.random[b]}" for a, b in space.pairs) or "none",
        "scale": "none" if place is None else names[place],
        "held": ", ".join(f"{names[position]} at {value:.6g}" for position, value in space.held) or "none",
        # Six digits: the scales of standardised attributes depend on the order of summation in the last digits.
        "priors": " ".join(f"{number:.6g}" for number in (*numbers, prior.concentration)),
    }


def describe_settings(settings: Any, without: Sequence[str] = (), prefix: str = "") -> Identity:
    """Return the class of a settings object and all its values by name, defaults included."""
    if not hasattr(settings, "get_params"):
        return {f"{prefix}settings": repr(settings)}
    found = {f"{prefix}method": type(settings).__name__}
    for name, value in settings.get_params(deep=False).items():
        if name in without:
            continue
        if hasattr(value, "get_params"):
            found |= describe_settings(value, (), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = repr(value)
    return found


# Settings that do not affect results (where work is stored, how long it may take) and may differ between processes.
WITHOUT_EFFECT = ("checkpoint", "max_seconds")


def agree_on(team: Communicator, asked: Identity) -> None:
    """Check that all processes request the same fit; else all of them raise.

    Raises
    ------
    SpecificationError
        If requests differ; the message names the settings and the processes.
    """
    by_process = team.gather(asked)
    for rank, other in enumerate(by_process):
        if other != by_process[0]:
            differing = sorted(k for k in {**by_process[0], **other} if by_process[0].get(k) != other.get(k))
            words = ", ".join(f"{k} ({by_process[0].get(k, 'none')}; {other.get(k, 'none')})" for k in differing)
            raise SpecificationError(
                f"processes 1 and {rank + 1} request different fits: {words}. Give all of them the same arguments."
            )


def describe_differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Describe the differences between two identities; long values are omitted.

    Parameters
    ----------
    found, wanted : mapping of str to str
        Identity of the file, and identity of the fit that would resume from it.

    Returns
    -------
    str
        Empty if the identities are equal.
    """
    differing = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    return ", ".join(_describe(name, found.get(name, "none"), wanted.get(name, "none")) for name in differing)


def _describe(name: str, found: str, wanted: str) -> str:
    readable = max(len(found), len(wanted)) <= _READABLE
    return f"other {name} ({found}; here {wanted})" if readable else f"other {name}"
