"""Three stated-preference panels as long frames for `MixedLogit.fit` (provenance in data/README.md)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mxlogit.choices import wide_to_long
from mxlogit.errors import ChoiceDataError

# Folders of the data: in an installed package, and in a checkout.
_PACKAGED = Path(__file__).parent / "_data"
_CHECKOUT = Path(__file__).parent.parent / "data"


def _read(name: str) -> pd.DataFrame:
    """Read a bundled file, from the installed package or from the checkout it was imported from."""
    for folder in (_PACKAGED, _CHECKOUT):
        path = folder / f"{name}.csv.gz"
        if path.exists():
            return pd.read_csv(path)
    raise ChoiceDataError(f"the bundled file {name}.csv.gz is missing; reinstall mxlogit.")


def load_electricity() -> pd.DataFrame:
    """Load choices among four electricity suppliers: 361 people, 4,308 situations.

    Returns
    -------
    pandas.DataFrame
        Long frame with columns ``id``, ``chid`` (situation), ``alt`` (1 to 4, unlabelled), ``choice`` (bool),
        ``pf`` (fixed price, cents per kWh; 0 under the other two schemes), ``cl`` (contract length, years),
        ``loc``, ``wk`` (local, well-known company), ``tod``, ``seas`` (time-of-day, seasonal rates).

    References
    ----------
    Revelt and Train (2001), Customer-Specific Taste Parameters and Mixed Logit, Econometrics 0012001.
    """
    return _read("electricity")


def load_train() -> pd.DataFrame:
    """Load choices of Dutch rail travellers between two trips: 235 people, 2,929 situations.

    Returns
    -------
    pandas.DataFrame
        Long frame with columns ``id``, ``situation``, ``alternative`` ("choice1", "choice2"), ``choice`` (bool),
        ``price`` (cents of guilders), ``time`` (minutes), ``change`` (number), ``comfort`` (0 best to 2).

    References
    ----------
    Ben-Akiva, Bolduc and Bradley (1993), Estimation of Travel Choice Models with Randomly Distributed Values
    of Time, Papers 9303, Laval.
    """
    sources = {name: {f"choice{i}": f"{name}{i}" for i in (1, 2)} for name in ("price", "time", "change", "comfort")}
    return wide_to_long(_read("train"), sources, choice="choice", decision_maker="id", situation="choiceid")


def load_swissmetro() -> pd.DataFrame:
    """Load choices of Swiss travellers among train, Swissmetro and car: 752 people, 6,768 situations.

    The sample is the usual one: commuters and business travellers with a recorded choice. Costs of train and
    Swissmetro are zero for holders of the annual season ticket.

    Returns
    -------
    pandas.DataFrame
        Long frame with columns ``id``, ``situation`` (0 to 8), ``alternative`` ("TRAIN", "SM", "CAR"), ``choice``
        (bool), ``available`` (bool), ``time`` (100 minutes), ``cost`` (100 francs), ``headway`` (minutes; 0 for
        car), and the person's ``GA AGE MALE INCOME LUGGAGE FIRST PURPOSE``.

    References
    ----------
    Bierlaire, Axhausen and Abay (2001), The Acceptance of Modal Innovation: The Case of Swissmetro, STRC.
    """
    wide = _read("swissmetro")
    wide = wide[wide["PURPOSE"].isin([1, 3]) & (wide["CHOICE"] != 0)].reset_index(drop=True)
    wide = wide.assign(
        CHOSEN=wide["CHOICE"].map({1: "TRAIN", 2: "SM", 3: "CAR"}),
        TRAIN_FARE=wide["TRAIN_CO"] * (wide["GA"] == 0),
        SM_FARE=wide["SM_CO"] * (wide["GA"] == 0),
    ).rename(columns={"ID": "id"})
    long = wide_to_long(
        wide,
        {
            "time": {"TRAIN": "TRAIN_TT", "SM": "SM_TT", "CAR": "CAR_TT"},
            "cost": {"TRAIN": "TRAIN_FARE", "SM": "SM_FARE", "CAR": "CAR_CO"},
            "headway": {"TRAIN": "TRAIN_HE", "SM": "SM_HE", "CAR": 0},
        },
        choice="CHOSEN",
        availability={"TRAIN": "TRAIN_AV", "SM": "SM_AV", "CAR": "CAR_AV"},
        keep=["GA", "AGE", "MALE", "INCOME", "LUGGAGE", "FIRST", "PURPOSE"],
    )
    return long.assign(time=long["time"] / 100.0, cost=long["cost"] / 100.0)
