"""Data files of the command line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mxlogit.errors import ChoiceDataError, MissingExtraError

_READ = (".csv", ".csv.gz", ".tsv", ".parquet")


def read_data(path: str | Path) -> pd.DataFrame:
    """Read a table from a file.

    Parameters
    ----------
    path : str or Path
        File in CSV (possibly with gzip), tab separated or Parquet format.

    Raises
    ------
    ChoiceDataError
        If there is no such file, or it is not a table in one of these formats.
    MissingExtraError
        If a Parquet file needs pyarrow, which is not there.
    """
    file = Path(path)
    if not file.is_file():
        raise ChoiceDataError(f"there is no data file {str(path)!r}.")
    if not file.name.endswith(_READ):
        raise ChoiceDataError(f"the data file must end in one of {', '.join(_READ)}; got {file.name!r}.")
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        frame = pd.read_csv(file, sep="\t" if file.suffix == ".tsv" else ",")
    except ImportError:
        raise MissingExtraError("Parquet files need pyarrow: pip install 'mxlogit[arrow]'.") from None
    except (ValueError, OSError, pd.errors.ParserError) as trouble:
        raise ChoiceDataError(f"the data file {str(path)!r} cannot be read: {trouble}.") from None
    if frame.shape[1] == 1:
        raise ChoiceDataError(
            f"the data file {str(path)!r} has one column, {frame.columns[0]!r}: is another separator used?"
        )
    return frame
