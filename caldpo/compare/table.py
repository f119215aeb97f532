"""``comparison.csv``: one row per run, with the final metrics under their logged names.

One of them is renamed: the column ``loss`` names the loss, and its value is ``training_loss``.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caldpo.compare.grouping import Setting

IDENTITY = ("loss", "seed", "setting", "status", "run")
RENAMED = {"loss": "training_loss"}  # its logged name is taken by the name of the loss


def comparison_rows(settings: Sequence[Setting]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows. A run that did not finish has a row without metrics.

    Its figures belong to another number of steps, and a mean over the column must not take them in.
    """
    runs = [(setting, run) for setting in settings for run in setting.runs]
    names = {RENAMED.get(name, name) for _, run in runs if run.finished for name in run.final}
    columns = [
        *IDENTITY,
        *(["loss.beta"] if any(run.number("loss.beta") is not None for _, run in runs) else []),
    ]
    columns += sorted(names, key=lambda name: (_kind(name), name))
    rows = []
    for setting, run in runs:
        identity = (run.loss, run.seed, setting.label, run.status, run.name)
        row = dict(zip(IDENTITY, identity, strict=True)) | {"loss.beta": run.number("loss.beta")}
        if run.finished:
            row |= {RENAMED.get(name, name): value for name, value in run.final.items()}
        rows.append({column: row.get(column) for column in columns})
    return columns, rows


def write_comparison(path: Path, settings: Sequence[Setting]) -> None:
    """Write the table; an empty cell was not logged, ``nan`` was."""
    columns, rows = comparison_rows(settings)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _kind(name: str) -> int:
    """Training metrics first, then held-out ones, then those of the true reward."""
    return {"val": 1, "oracle": 2}.get(name.partition("/")[0], 0)
