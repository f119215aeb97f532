"""List the rows that gave no pair in a file of the run's folder, and count them by reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from caldpo.data.data_report import LoadReport, Rejection

REJECTED_ROWS = "rejected_rows.jsonl"


def write_rejections(reports: Iterable[LoadReport], path: Path) -> None:
    """Write every rejection as a JSON line {split, origin, kind, reason}; an empty file where nothing was rejected."""
    lines = (_line(report.split, rejection) for report in reports for rejection in report.rejections)
    path.write_text("".join(lines), encoding="utf-8")


def append_rejection(split: str, rejection: Rejection, path: Path) -> None:
    """Add a rejection that was found during training."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(split, rejection))


def count_rejections(path: Path) -> dict[str, int]:
    """Count the listed rejections by reason without its details, most frequent first; none where there is no file.

    The file is read rather than the rows counted, since rows of a stream may be rejected in a process of its own.
    """
    counts: Counter[str] = Counter()
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                with suppress(ValueError, TypeError, KeyError):  # a line that was edited since
                    row = json.loads(line)
                    counts[Rejection(row["origin"], row["kind"], row["reason"]).category] += 1
    return dict(counts.most_common())


def _line(split: str, rejection: Rejection) -> str:
    return json.dumps({"split": split, **asdict(rejection)}) + "\n"
