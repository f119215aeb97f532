"""``comparison.csv``: one row per run, with the final metrics under their logged names.

What is measured on held-out pairs as well as on training batches has three columns: ``log_ratios/chosen`` and
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

from caldpo.metric_definitions import HELD_OUT
from caldpo.report.escaping import spreadsheet_cell
from caldpo.report.grouping import RunGroup
from caldpo.utils.atomic_io import atomic_text

IDENTITY = ["loss", "seed", "setting", "status", "run"]
SETTINGS = ["loss.beta", "reward_beta"]  # shown where any run has them
_SECTIONS = {"val": 1, "oracle": 2, "evaluation": 3, "train": 4}  # order of columns; plain names come first


def final_metrics(final: Mapping[str, Any]) -> dict[str, Any]:
    """Name a run's final metrics by column."""
    held_out = {name.removeprefix(HELD_OUT): value for name, value in final.items() if name.startswith(HELD_OUT)}
    twice = {*held_out, "loss"}  # the column `loss` is the loss's name, whatever was logged
    columns = {f"train/{name}" if name in twice else name: value for name, value in final.items()}
    return columns | {name: value for name, value in held_out.items() if name != "loss"}


def comparison_rows(groups: Sequence[RunGroup]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and one row per run; None was not logged, ``nan`` was.

    A run that did not finish has a row without metrics: its figures belong to another number of steps, and a mean over
    the column must not take them in.
    """
    rows = [
        {
            **dict(zip(IDENTITY, (run.loss, run.seed, group.label, run.status, run.name), strict=True)),
            **dict(zip(SETTINGS, (run.number("loss.beta"), run.reward_beta), strict=True)),
            **(final_metrics(run.final) if run.finished else {}),
        }
        for group in groups
        for run in group.runs
    ]
    metrics = {name for row in rows for name in row} - {*IDENTITY, *SETTINGS}
    columns = [
        *IDENTITY,
        *(name for name in SETTINGS if any(row[name] is not None for row in rows)),
        *sorted(metrics, key=lambda name: (_SECTIONS.get(name.partition("/")[0], 0), name)),
    ]
    return columns, [[row.get(column) for column in columns] for row in rows]


def write_comparison(path: Path, groups: Sequence[RunGroup]) -> None:
    """Write the table; an empty cell was not logged, ``nan`` was.

    By csv, not as a pandas frame, which has one value for both and turns the seeds into floats where a run has none.
    """
    columns, rows = comparison_rows(groups)
    with atomic_text(path) as file:
        csv.writer(file, lineterminator="\n").writerows([*map(spreadsheet_cell, row)] for row in (columns, *rows))
