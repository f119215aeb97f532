"""Pairs given from Python as a file that a run can name: rows in memory are written once, under their digest.

A run with a file is the run that the command would make: it is recorded, resumed and evaluated like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from caldpo.config.conf_dir import is_option
from caldpo.data.sources.file_checks import ENDINGS, ending
from caldpo.errors import CaldpoError
from caldpo.utils.file_names import expanded, is_there

if TYPE_CHECKING:
    import datasets
    import pandas as pd

PAIRS = "pairs"  # below the cache: one file for each content
Pairs: TypeAlias = "str | Path | Sequence[str | Path] | Sequence[Mapping[str, Any]] | pd.DataFrame | datasets.Dataset"
"""A name, names of files, or rows: dicts, a frame of pandas or a ``Dataset``, in any format of docs/data.md."""

_KINDS = (
    "a file or folder, a list of dicts, a pandas.DataFrame or a datasets.Dataset, of rows such as"
    ' {"prompt": "...", "chosen": "...", "rejected": "..."}'
)


def pair_settings(
    pairs: Pairs | None, test_pairs: Pairs | None, cache: Path, own: Sequence[Path] = ()
) -> dict[str, Any]:
    """Return the settings that read these pairs; none where the model's own data is to be used.

    A name is that of a file, folder or pattern; else of an option of ``conf/data``, or of ``data`` in ``own`` folders
    of yamls; else of a data set of the hub.

    Raises:
        CaldpoError: they are of no known kind, or hold what no file can.
    """
    if pairs is None:
        if test_pairs is not None:
            raise CaldpoError("is given without pairs to train on", key="test_pairs", remedy="give pairs as well")
        return {}
    settings: dict[str, Any] = {"data": "local"}
    if isinstance(pairs, str | Path) and not is_there(expanded(str(pairs))):
        name = str(pairs)
        if name not in ("base", "local", "hub") and is_option("data", name, own):
            settings = {"data": name}
        elif _is_hub_name(name):
            settings = {"data": "hub", "data.path": name}
        else:
            settings["data.train"] = name
    else:
        settings["data.train"] = as_files(pairs, cache, "pairs")
    if test_pairs is not None:
        settings["data.test"] = as_files(test_pairs, cache, "test_pairs")
    return settings


def as_files(pairs: Pairs, cache: Path, name: str) -> str | list[str]:
    """Return the file that holds the pairs, or the names that were given; ``name`` is the argument's.

    Raises:
        CaldpoError: as :func:`pair_settings`.
    """
    if isinstance(pairs, str | Path):
        return str(pairs)
    if isinstance(pairs, list | tuple) and pairs and all(isinstance(item, str | Path) for item in pairs):
        return [str(item) for item in pairs]
    return str(_written(pairs, cache / PAIRS, name))


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and ending(Path(name)) not in ENDINGS


def _written(pairs: Any, folder: Path, name: str) -> Path:
    """Write rows as ``FOLDER/DIGEST.jsonl`` or, of a table, ``.parquet``, unless that file is there."""
    import tempfile

    from caldpo.utils.digests import file_digest

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            file = _write(pairs, Path(draft), name)
            place = folder / f"{file_digest(file)[:16]}{file.suffix}"
            if not place.exists():
                file.replace(place)
    except OSError as error:
        raise CaldpoError(
            f"cannot be written: {error.strerror or error}",
            key=str(error.filename or folder),
            remedy="make the current folder writable, or give the name of a file",
        ) from error
    return place


def _write(pairs: Any, folder: Path, name: str) -> Path:
    kind = type(pairs)
    library = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"  # without importing either
    if isinstance(pairs, list | tuple):
        return _write_rows(pairs, folder / "rows.jsonl", name)
    if library not in ("pandas.DataFrame", "datasets.Dataset"):
        remedy = f"give {_KINDS}"
        if isinstance(pairs, Mapping):
            remedy = "give the splits of a DatasetDict one by one: pairs=d['train'], test_pairs=d['test']"
        raise CaldpoError(f"is a {kind.__name__}", key=name, remedy=remedy)
    if not len(pairs):
        raise CaldpoError("holds no rows", key=name, remedy=f"give {_KINDS}")
    if library == "pandas.DataFrame":
        pairs = _without_index(pairs, name)
    file = folder / "rows.parquet"
    import pyarrow

    try:
        pairs.to_parquet(file, index=False) if library == "pandas.DataFrame" else pairs.to_parquet(str(file))
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise CaldpoError(
            f"is a table that cannot be written: {str(error).splitlines()[0]}",
            key=name,
            remedy="give each column values of one type, or a list of dicts",
        ) from error
    return file


def _without_index(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Turn an index with a name, as ``set_index`` makes of a column, back into the column; one without is left out."""
    named = [level for level in frame.index.names if level is not None]
    if taken := [level for level in named if level in frame.columns]:
        raise CaldpoError(
            f"{taken[0]!r} is the name of its index and of a column",
            key=name,
            remedy="give frame.reset_index(drop=True), which leaves out the index, or rename one of them",
        )
    return frame.reset_index(named) if named else frame


def _write_rows(rows: Sequence[Any], file: Path, name: str) -> Path:
    if not rows:
        raise CaldpoError("holds no rows", key=name, remedy=f"give {_KINDS}")
    with file.open("w", encoding="utf-8") as lines:
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise CaldpoError(f"is a {type(row).__name__}", key=f"{name}[{number}]", remedy=f"give {_KINDS}")
            try:
                lines.write(json.dumps(dict(row), ensure_ascii=False, allow_nan=False, default=_plain) + "\n")
            except (TypeError, ValueError, RecursionError) as error:
                raise CaldpoError(
                    f"cannot be written as JSON: {error}",
                    key=f"{name}[{number}]",
                    remedy="give texts, finite numbers, lists and dicts",
                ) from error
    return file


def _plain(value: Any) -> Any:
    """Convert a number of numpy, or an array of them."""
    import numpy as np

    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is in it")
