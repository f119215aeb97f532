"""``comparison.csv``: one row per run, with the final metrics under their logged names.

What is measured on held-out pairs as well as on training batches stands there thrice: ``log_ratios/chosen`` and
``val/log_ratios/chosen`` are the final held-out value, ``train/log_ratios/chosen`` that of the last training step
(one batch, and empty for losses that train without a reference). The column ``loss`` names the loss; its value
is in ``val/loss`` and ``train/loss``. ``rewards/*`` are in the unit that the column ``reward_beta`` gives, the same in
all rows. ``evaluation/oracle/reward`` was measured by the suite ``oracle`` of
``caldpo.evaluate``, ``oracle/reward`` at the end of training.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caldpo.report.escaping import spreadsheet_cell
from caldpo.report.grouping import Setting
from caldpo.utils.atomic_io import atomic_text

IDENTITY = ("loss", "seed", "setting", "status", "run")
UNIT = "reward_beta"  # column: rewards/* of the row are this times log-ratios in nats


def final_metrics(final: Mapping[str, Any]) -> dict[str, Any]:
    """A run's final metrics by column."""
    held_out = {name.removeprefix("val/"): value for name, value in final.items() if name.startswith("val/")}
    twice = {*held_out, "loss"}  # the column `loss` is the loss's name, whatever was logged
    columns = {f"train/{name}" if name in twice else name: value for name, value in final.items()}
    return columns | {name: value for name, value in held_out.items() if name != "loss"}


def comparison_rows(settings: Sequence[Setting]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows. A run that did not finish has a row without metrics.

    Its figures belong to another number of steps, and a mean over the column must not take them in.
    """
    runs = [(setting, run) for setting in settings for run in setting.runs]
    names = {name for _, run in runs if run.finished for name in final_metrics(run.final)}
    columns = [
        *IDENTITY,
        *(["loss.beta"] if any(run.number("loss.beta") is not None for _, run in runs) else []),
        *([UNIT] if any(run.reward_beta is not None for _, run in runs) else []),
    ]
    columns += sorted(names, key=lambda name: (_kind(name), name))
    rows = []
    for setting, run in runs:
        identity = (run.loss, run.seed, setting.label, run.status, run.name)
        row = dict(zip(IDENTITY, identity, strict=True)) | {"loss.beta": run.number("loss.beta"), UNIT: run.reward_beta}
        if run.finished:
            row |= final_metrics(run.final)
        rows.append({column: row.get(column) for column in columns})
    return columns, rows


def write_comparison(path: Path, settings: Sequence[Setting]) -> None:
    """Write the table; an empty cell was not logged, ``nan`` was."""
    columns, rows = comparison_rows(settings)
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(spreadsheet_cell, columns))
        writer.writerows([spreadsheet_cell(row[column]) for column in columns] for row in rows)


def _kind(name: str) -> int:
    """Metrics under their plain names first, then by where they were measured."""
    return {"val": 1, "oracle": 2, "evaluation": 3, "train": 4}.get(name.partition("/")[0], 0)
