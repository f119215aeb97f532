"""Read runs from csv files that W&B has exported, where the runs' folders are not at hand.

Three kinds of file are told apart by their header:

- a chart (in its menu: *CSV*): the steps, and a column ``RUN - METRIC`` for each run;
- a run's history (``wandb.Api().run(PATH).history().to_csv(FILE)``, or of ``scan_history()``), named by its file;
- the table of runs (*Export*: *CSV*): name, state, configuration and final metrics, without curves.

What several files hold of a run, by its name, is put together. A bad cell costs that cell.
"""

from __future__ import annotations

import csv
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caldpo.config.run_lifecycle import DIED, FAILED, FINISHED, INTERRUPTED, RUNNING
from caldpo.errors import CaldpoError
from caldpo.metric_definitions import CHOSEN_LOG_RATIO, CHOSEN_REWARD, definition_of
from caldpo.report.escaping import first_of, one_line
from caldpo.report.logged_curve import LAST_STEP, LoggedCurve
from caldpo.report.run_files import Run
from caldpo.utils.yaml_io import parse_yaml

OPTIMIZER_STEPS = "trainer/global_step"  # as Lightning logs them
_STEPS = (OPTIMIZER_STEPS, "global_step", "step", "Step", "_step")  # names of a column of steps, the best one first
_W_AND_B_STEPS = ("Step", "_step")  # W&B's own count of logged rows
_ROW = "row"  # the number of a row, which this project logs beside the metrics
_BETWEEN = " - "  # run and metric in the header of a chart
_NO_METRIC = ("_", "Unnamed:")  # W&B's own columns, and the index of pandas
_EXTREMES = ("__MIN", "__MAX")
_STATES = {"running": RUNNING, "finished": FINISHED, "failed": FAILED, "crashed": DIED, "killed": INTERRUPTED}
_APART = "give the runs names of their own in W&B, or export their histories: a history's file names its run"
_OF_THE_TABLE = {"User", "Notes", "Tags", "Created", "Runtime", "Sweep", "ID", "Group", "Job Type", "Updated"}


@dataclass
class _Exported:
    """What the files hold of one run."""

    file: Path
    state: str | None = None  # as W&B has it
    config: dict[str, Any] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    steps: dict[str, array[int]] = field(default_factory=dict)
    values: dict[str, array[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, metric: str, step: float | None, value: float | None) -> None:
        if step is not None and value is not None and 0 <= step <= LAST_STEP and step.is_integer():
            self.steps.setdefault(metric, array("q")).append(int(step))
            self.values.setdefault(metric, array("d")).append(value)


def read_exports(files: Iterable[Path]) -> list[Run]:
    """Read the runs of exported files, in the order in which they first appear.

    Raises:
        CaldpoError: a file cannot be read, or is none of the three kinds.
    """
    runs: dict[str, _Exported] = {}
    for file in files:
        try:
            with file.open(newline="", encoding="utf-8-sig", errors="replace") as opened:
                _read(file, csv.reader(opened), runs)
        except (OSError, csv.Error) as error:
            raise CaldpoError(f"cannot be read: {error}", key="sweep", value=file) from error
    for name in runs:
        plain, _, rest = name.rpartition(" (")
        if rest and plain in runs:
            wrong = (
                f"{plain} is the name of several runs, and {runs[plain].file.name} does not tell whose curves it has"
            )
            raise CaldpoError(wrong, key="sweep", value=runs[name].file, remedy=_APART)
    return [_as_run(name, run) for name, run in runs.items()]


def _read(file: Path, rows: Iterable[list[str]], runs: dict[str, _Exported]) -> None:
    lines = iter(rows)
    header = [name.strip() for name in next(lines, [])]
    if {"Name", "State"} <= set(header):
        return _read_table(file, header, lines, runs)
    steps = next((name for name in _STEPS if name in header), None)
    charted = [place for place, name in enumerate(header) if _BETWEEN in name]
    if steps is None or (charted and header[0] != steps) or len(header) < 2:
        wrong = "is no csv that W&B exports"
        if charted:
            wrong = f"is a chart over {header[0]}, not over steps"
        remedy = f"export a chart over {OPTIMIZER_STEPS}, the table of runs, or a run's history; or name runs' folders"
        raise CaldpoError(wrong, key="sweep", value=file, remedy=remedy)
    places = charted or [place for place, name in enumerate(header) if name and name not in _STEPS]
    columns: list[tuple[int, _Exported, str]] = []
    if charted and len({header[place] for place in charted}) < len(charted):
        raise CaldpoError("has two runs of one name", key="sweep", value=file, remedy=_APART)
    for place in places:
        name, _, metric = header[place].rpartition(_BETWEEN) if charted else (file.stem, "", header[place])
        if metric != _ROW and not metric.startswith(_NO_METRIC) and not metric.endswith(_EXTREMES):
            columns.append((place, runs.setdefault(one_line(name), _Exported(file)), metric))
    bad: list[str] = []
    at = header.index(steps)
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            bad.append(f"line {number}")
            continue
        step = _number(cells[at], f"line {number}", bad)
        for place, run, metric in columns:
            if cells[place].strip():
                run.add(metric, step, _number(cells[place], f"{metric} in line {number}", bad))
    for run in {id(run): run for _, run, _ in columns}.values():
        run.notes.append(f"read from {file.name}, which W&B may have sampled: curves then lack points")
        if steps in _W_AND_B_STEPS:
            run.notes.append(f"{file.name} has W&B's own count of logged rows as steps, not optimiser steps")
        if bad:
            run.notes.append(f"{file.name}: left out as no numbers: {first_of(bad, 3)}")
    return None


def _read_table(file: Path, header: Sequence[str], lines: Iterable[list[str]], runs: dict[str, _Exported]) -> None:
    cells_of = [{name: cell for name, cell in zip(header, cells, strict=False) if cell.strip()} for cells in lines]
    rows = [row for row in cells_of if "Name" in row]
    often = Counter(row["Name"] for row in rows)
    for number, row in enumerate(rows, start=1):
        name = one_line(row.pop("Name"))
        if often[name] > 1:  # W&B tells such runs apart by their IDs, and so is each row a run here
            name = f"{name} ({one_line(row.get('ID') or f'row {number}')})"
        run = runs.setdefault(name, _Exported(file))
        run.state = row.pop("State", None)
        for name, cell in row.items():
            if name == OPTIMIZER_STEPS or definition_of(name) is not None:
                value = _number(cell, "", [])
                run.final |= {} if value is None else {name: value}
            elif name not in (_ROW, *_OF_THE_TABLE) and not name.startswith("_"):
                run.config[name] = _plain(cell)


def _as_run(name: str, exported: _Exported) -> Run:
    curves = {metric: LoggedCurve.of_rows(steps, exported.values[metric]) for metric, steps in exported.steps.items()}
    named, rest = _overrides_in(name)
    config = exported.config or {**named, **({"run": rest} if rest else {})}
    seed = config.get("seed", named.get("seed"))
    loss = config.get("loss_name") or named.get("loss") or name
    known = {key: value for key, value in config.items() if key not in ("loss", "loss_name", "seed")}
    status = _STATES.get(str(exported.state).lower(), FINISHED)
    notes = list(exported.notes)
    if not exported.config:
        notes.append("its configuration is not in the export: whether data, model and steps are alike is not known")
    if name.startswith("Group: "):
        notes.append("W&B has averaged a group of runs: its seeds are not known, and count as one")
    beta = known.get("reward_beta", _reward_beta(curves))
    steps = exported.final.pop(OPTIMIZER_STEPS, None)
    return Run(
        folder=exported.file,
        name=name,
        status=status,
        error=None if status == FINISHED else f"W&B has it as {one_line(exported.state)}",
        loss=one_line(loss),
        seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
        config=known,
        resolved=config,
        curves=curves,
        final={metric: curve.last for metric, curve in curves.items()} | exported.final,
        summary={} if steps is None else {"steps": int(steps)},
        notes=tuple(map(one_line, notes)),
        reward_beta=float(beta) if isinstance(beta, int | float) and beta > 0 else None,
        exported=True,
    )


def _overrides_in(name: str) -> tuple[dict[str, Any], str]:
    """Split the name of a run of this project into its overrides (``loss=dpo seed=0``) and the rest."""
    words = re.split(r"[ ,]+", name)
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    return {key: _plain(value) for key, value in pairs.items()}, " ".join(w for w in words if "=" not in w)


def _reward_beta(curves: dict[str, LoggedCurve]) -> float | None:
    """Find the unit of the rewards, which are a multiple of the log-ratios of the same rows."""
    rewards, ratios = (curves.get(metric.held_out.name) for metric in (CHOSEN_REWARD, CHOSEN_LOG_RATIO))
    if rewards is None or ratios is None:
        return None
    shared = [(abs(ratio), step) for step, ratio in ratios.items() if math.isfinite(ratio) and step in rewards]
    size, step = max(shared, default=(0.0, 0))
    return float(f"{rewards[step] / ratios[step]:.6g}") if size > 0 else None


def _number(cell: str, place: str, bad: list[str]) -> float | None:
    try:
        return float(cell)
    except ValueError:
        bad.append(f"{place} {cell[:40]!r}")
        return None


def _plain(cell: str) -> Any:
    """Read a cell as yaml does, so that it equals the same value of a run's own files."""
    try:
        value = parse_yaml(cell)
    except ValueError:
        return cell
    return value if isinstance(value, int | float | bool | list) or value is None else cell
