"""Rows of the report's tables as plain text, for ``report.md`` and ``report.html`` alike."""

from __future__ import annotations

from collections.abc import Sequence

from caldpo.report import comparison_facts as facts
from caldpo.report.escaping import command, shorten
from caldpo.report.grouping import RunGroup, by_seed
from caldpo.report.run_files import Run
from caldpo.report.table_cells import NONE

_REWARD = "log-ratio (nats, summed over tokens), the same for every loss: reward_beta"
_REPEATED = "the same setting and seed; their mean counts as one seed"
_TRAIN = ("python", "-m", "caldpo.train")


def fact_rows(groups: Sequence[RunGroup]) -> list[tuple[str, str]]:
    """Return what was compared, by name, of ``groups`` with those that did not finish."""
    finished = facts.finished_runs(groups)
    total = sum(len(group.runs) for group in groups)
    counts = facts.shared_facts(finished, "data")
    data = {key: value for key, value in counts.items() if key.count(".") <= 1 and value != "0"}  # most count faults
    betas = {beta for run in finished if (beta := run.reward_beta) is not None}
    rows = {
        "data": facts.choice(finished, "data"),
        "model": facts.choice(finished, "model"),
        "policy": facts.varied(finished, lambda run: run.summary.get("policy")),
        "optimiser steps": facts.steps(finished),
        "seeds": facts.varied(finished, lambda run: run.seed, limit=20),
        "runs": f"{len(finished)} of {total} finished, {len(groups)} settings",
        "unit of rewards": f"{max(betas):g} x {_REWARD}" if len(betas) == 1 else None,
        "about the data": _joined(data),
        "versions": _joined(facts.shared_facts(finished, "versions")),
    }
    return [(key, value) for key, value in rows.items() if value]


def formula_rows(groups: Sequence[RunGroup]) -> list[list[str | None]]:
    """Return setting, loss per pair and, where any has one, implicit reward by the loss's own derivation.

    Empty where no loss is known by its formula; None in a row that lacks it.
    """
    formulas = [facts.varied(group.finished, lambda run: run.summary.get("formula")) for group in groups]
    own = [facts.own_reward(group) for group in groups]
    if not any(formulas):
        return []
    rows = zip(groups, formulas, own, strict=True)
    return [[group.label, formula, *([text] if any(own) else [])] for group, formula, text in rows]


def annotated_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Return run, ``tags`` and ``notes`` of the runs that have any."""
    rows = []
    for run in runs:
        tags, notes = run.resolved.get("tags"), run.resolved.get("notes")
        tags = tags if isinstance(tags, list) else [tags]
        words = [", ".join(str(tag) for tag in tags if tag), str(notes or "")]
        if any(words):
            rows.append([run.name, *(word or NONE for word in words)])
    return rows


def unfinished_rows(groups: Sequence[RunGroup]) -> list[list[str]]:
    """Return run, setting, status, last step logged and error of each run that did not finish."""
    rows = []
    for group in groups:
        for run in (run for run in group.runs if not run.finished):
            last = NONE if run.last_step is None else str(run.last_step)
            rows.append([run.name, group.label, run.status, last, shorten(run.error or NONE)])
    return rows


def remark_rows(groups: Sequence[RunGroup], failed: Sequence[str]) -> list[tuple[list[str], str]]:
    """Return what a reader has to know, each with its runs: what failed, notes, and seeds that were run twice."""
    said: list[tuple[list[str], str]] = [([], text) for text in failed]
    said += [([run.name], note) for run in facts.finished_runs(groups) for note in run.notes]
    repeats = [same for group in groups for same in by_seed(group.finished) if len(same) > 1]
    return said + [([run.name for run in same], _REPEATED) for same in repeats]


def sweep_commands(tasks: Sequence[Sequence[str]]) -> list[str]:
    """Return the commands that start the sweeps again."""
    return [command([*_TRAIN, "-m", *task]) for task in tasks]


def run_commands(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return each run's name, and the command that trains it by itself; a file of W&B's does not know it."""
    return [(run.name, command([*_TRAIN, *run.overrides])) for run in runs if not run.exported]


def _joined(entries: dict[str, str]) -> str:
    return ", ".join(f"{key} {shorten(value, 80)}" for key, value in entries.items())
