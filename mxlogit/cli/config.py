"""Configuration of ``mxlogit fit``: a TOML file of data, model, engine, questions and output."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mxlogit.errors import SpecificationError, check_probability, suggest
from mxlogit.estimator import MixedLogit
from mxlogit.request import resolve_method
from mxlogit.spec import Mixture, Network

# Known keys by section.
_KEYS = {
    "data": ("file", "decision_maker", "situation", "alternative", "choice", "availability", "weights", "cluster"),
    "model": (
        "fixed",
        "random",
        "correlated",
        "constants",
        "base_alternative",
        "scale",
        "mean_shifters",
        "held",
        "nests",
        "mixing",
        "within",
        "weights_sum",
    ),
    "engine": ("method", "random_state", "device", "dtype", "settings"),
    "questions": ("wtp", "elasticities", "marginal_effects", "shares", "diversion", "interval"),
    "output": ("folder", "report", "pictures", "model"),
}


@dataclass(frozen=True)
class Config:
    """A configuration, checked.

    Attributes
    ----------
    file : Path
        Data file.
    estimator : MixedLogit
        Estimator that is not fitted.
    questions : dict
        Section ``questions``.
    folder : Path
        Folder of the results.
    output : dict
        Section ``output``.
    """

    file: Path
    estimator: MixedLogit
    folder: Path
    questions: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)


def read_config(path: str | Path) -> Config:
    """Read and check a configuration; paths in it are relative to its folder.

    Raises
    ------
    SpecificationError
        If there is no such file, it is not TOML, or has unknown or missing entries.
    """
    file = Path(path)
    if not file.is_file():
        raise SpecificationError(f"there is no configuration {str(path)!r}; `mxlogit init DATA` writes one.")
    try:
        words = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as trouble:
        raise SpecificationError(f"{str(path)!r} is not valid TOML: {trouble}.") from None
    _check_keys(words)
    data, model, engine = (dict(words.get(name, {})) for name in ("data", "model", "engine"))
    if "file" not in data:
        raise SpecificationError(f"{str(path)!r} names no data: [data] needs file = '...'.")
    source = file.parent / data.pop("file")
    settings = engine.pop("settings", {})
    if settings:
        engine["method"] = _with_settings(engine.get("method", "vi"), settings)
    if isinstance(model.get("mean_shifters"), dict):
        model["mean_shifters"] = {name: _make_network(words) for name, words in model["mean_shifters"].items()}
    if "mixing" in model:
        model["mixing"] = _make_mixture(model["mixing"])
    output = dict(words.get("output", {}))
    questions = dict(words.get("questions", {}))
    _check_questions(questions)
    estimator = MixedLogit(**data, **model, **{"random_state": 0, **engine})
    return Config(source, estimator, file.parent / output.get("folder", "results"), questions, output)


def _check_keys(words: Mapping[str, Any]) -> None:
    for section, content in words.items():
        if section not in _KEYS:
            raise SpecificationError(f"unknown section [{section}]; known: {list(_KEYS)}.{suggest(section, _KEYS)}")
        if not isinstance(content, dict):
            raise SpecificationError(f"{section} must be a section, [{section}].")
        for key in content:
            if key not in _KEYS[section]:
                hint = suggest(key, _KEYS[section])
                raise SpecificationError(f"unknown entry {key!r} in [{section}]; known: {list(_KEYS[section])}.{hint}")


def _with_settings(method: str, settings: Mapping[str, Any]) -> Any:
    """Settings object of an engine with some settings changed."""
    engine = resolve_method(method)
    known = list(engine.get_params())  # type: ignore[attr-defined]
    for name in settings:
        if name not in known:
            raise SpecificationError(
                f"engine {method!r} has no setting {name!r}; it has {known}.{suggest(name, known)}"
            )
    return engine.set_params(**settings)  # type: ignore[attr-defined]


def _make_network(words: Any) -> Any:
    """A network from a table such as ``{covariates = ["income"], hidden = [16]}``; lists of covariates as they are."""
    if not isinstance(words, dict):
        return words
    known = [part.name for part in fields(Network)]
    if set(words) - set(known) or "covariates" not in words:
        raise SpecificationError(
            f"[model] mean_shifters: a network is a table of {known}, such as {{covariates = ['income']}}; got "
            f"{words!r}."
        )
    return Network(**words)


def _make_mixture(words: Any) -> Mixture:
    """A mixture from a table such as ``{classes = 3, spread = 0}``."""
    known = [part.name for part in fields(Mixture)]
    if not isinstance(words, dict) or set(words) - set(known):
        raise SpecificationError(f"[model] mixing must be a table of {known}, such as {{classes = 3}}; got {words!r}.")
    ignored = words.get("ignored", {})
    if isinstance(ignored, dict):
        # Keys of TOML are words.
        ignored = {int(key) if str(key).isdigit() else key: names for key, names in ignored.items()}
    return Mixture(**{**words, "ignored": ignored})


def _check_questions(questions: dict[str, Any]) -> None:
    check_probability("interval", questions.get("interval", 0.95))
    for name in ("elasticities", "marginal_effects"):
        asked = questions.get(name, [])
        if not isinstance(asked, list) or not all(isinstance(column, str) for column in asked):
            raise SpecificationError(f"[questions] {name} must be a list of columns; got {asked!r}.")
    pairs = questions.get("wtp", [])
    if not isinstance(pairs, list) or not all(isinstance(p, dict) and set(p) == {"attribute", "cost"} for p in pairs):
        raise SpecificationError(
            f"[questions] wtp must be a list such as [{{attribute = 'time', cost = 'price'}}]; got {pairs!r}."
        )
