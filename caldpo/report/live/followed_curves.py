"""``metrics.csv`` of a run that trains: of a file that has grown only what was added is read."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import BinaryIO

from caldpo.report.logged_curve import LoggedCurve
from caldpo.report.read_curves import IsWhole, MetricRows

_COMPARED = 256  # bytes ahead of where reading ends, by which a file is known again


class FollowedCurves:
    """Reads as ``read_curves`` does, one file again and again; a last line without its end is left for later."""

    def __init__(self) -> None:
        self._rows: MetricRows | None = None
        self._end = 0  # of what was read, bytes
        self._last = b""  # of what was read

    def __call__(self, path: Path, notes: list[str], is_whole: IsWhole) -> dict[str, LoggedCurve]:
        """Return the curves so far; see :func:`caldpo.report.read_curves.read_curves`."""
        try:
            with path.open("rb") as file:
                self._read(file, is_whole)
        except FileNotFoundError:
            notes.append(f"no {path.name}")
            self._rows = None
        except (OSError, csv.Error) as error:
            notes.append(f"{path.name} cannot be read: {error}")
            self._rows = None
        return {} if self._rows is None else self._rows.curves(path.name, notes)

    def _read(self, file: BinaryIO, is_whole: IsWhole) -> None:
        """Read on where reading ended; from the beginning where the file is another, as one with a new column is."""
        if self._rows is None or not self._is_same(file):
            self._rows, self._end, self._last = None, 0, b""
        file.seek(self._end)
        added = file.read()
        added = added[: added.rfind(b"\n") + 1]
        if not added:
            return
        text = added.decode("utf-8" if self._rows else "utf-8-sig", errors="replace")
        self._rows = self._rows or MetricRows(is_whole)
        self._rows.add(csv.reader(io.StringIO(text, newline="")))
        self._end += len(added)
        self._last = (self._last + added)[-_COMPARED:]

    def _is_same(self, file: BinaryIO) -> bool:
        if os.fstat(file.fileno()).st_size < self._end:
            return False
        file.seek(self._end - len(self._last))
        return file.read(len(self._last)) == self._last
