"""Fill ``report.md.j2``: what was compared, the pictures, the tables, and what can be read off them. No opinions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caldpo.report import comparison_facts as facts
from caldpo.report import shown_metrics
from caldpo.report.escaping import Markdown, code, command, render, shorten
from caldpo.report.evaluation_tables import suite_sections
from caldpo.report.grouping import RunGroup, by_seed
from caldpo.report.run_files import Run, as_float
from caldpo.report.statistics import BandKind, estimate
from caldpo.report.table_cells import NONE, markdown_table, metrics_table, spread
from caldpo.report.unlike_runs import unlike
from caldpo.utils.text_format import number

TEMPLATE = Path(__file__).with_name("report.md.j2")
BANDS = {"range": "from the lowest to the highest seed", "sd": "one standard deviation to either side"}
_REWARD = "log-ratio (nats, summed over tokens), the same for every loss: reward_beta"
_TRAIN = ("python", "-m", "caldpo.train")


def report(
    groups: Sequence[RunGroup],
    folders: Sequence[Path],
    kind: BandKind,
    pictures: Sequence[str],
    tasks: Sequence[Sequence[str]] = (),
    failed: Sequence[str] = (),
) -> str:
    """Write the report as Markdown.

    Args:
        groups: all, also those of which no run finished.
        folders: that were compared.
        kind: what the bands of the curves show.
        pictures: names of the figures that were drawn.
        tasks: overrides that started each sweep, where they are known.
        failed: which figures could not be drawn, and why.
    """
    measured = [group for group in groups if group.finished]
    runs = [run for group in groups for run in group.runs]
    oracle = [m for m in shown_metrics.ORACLE if any(group.finals(m.final) for group in groups)]
    return render(
        TEMPLATE,
        compared=[path.name for path in folders],
        runs=runs,
        unfinished=[run for run in runs if not run.finished],
        unmeasured=[group.label for group in groups if not group.finished],
        fewer=[group for group in measured if group.seeds < group.started_seeds],
        unlike=unlike(groups),
        what=_what_was_compared(groups),
        formulas=_formulas(groups),
        beyond=facts.unfair_differences(groups),
        annotated=_annotated(runs),
        pictures=pictures,
        band=BANDS[kind],
        reward_unit=facts.reward_unit(measured),
        ends=[_end(group) for group in measured],
        held_out=metrics_table(groups, shown_metrics.HELD_OUT),
        oracle=metrics_table(groups, oracle) if oracle else None,
        suites=suite_sections(groups, pictures),
        costs=_costs(groups),
        peak_memory_of=facts.varied(facts.finished_runs(groups), lambda run: run.summary.get("peak_memory_of")),
        left_out=_left_out(groups),
        failed=failed,
        notes=[(run.name, note) for run in facts.finished_runs(groups) for note in run.notes],
        repeats=[[run.name for run in same] for g in groups for same in by_seed(g.finished) if len(same) > 1],
        meanings=[(metric, facts.unit(metric, groups)) for metric in (*shown_metrics.HELD_OUT, *oracle)],
        sweeps=[command([*_TRAIN, "-m", *task]) for task in tasks],
        commands=[f"{command([*_TRAIN, *run.overrides])}  # {command([run.name])}" for run in runs if not run.exported],
    )


def _what_was_compared(groups: Sequence[RunGroup]) -> Markdown:
    finished = facts.finished_runs(groups)
    total = sum(len(group.runs) for group in groups)
    data = {key: value for key, value in facts.shared_facts(finished, "data").items() if key.count(".") <= 1}
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
    return markdown_table(["", ""], [(key, value) for key, value in rows.items() if value], text_columns=2)


def _formulas(groups: Sequence[RunGroup]) -> Markdown | None:
    formulas = [facts.varied(group.finished, lambda run: run.summary.get("formula")) for group in groups]
    if not any(formulas):
        return None
    columns: dict[str, list[str]] = {"setting": [code(group.label) for group in groups]}
    columns["loss per pair"] = [code(formula) if formula else NONE for formula in formulas]
    own = [facts.own_reward(group) for group in groups]
    if any(own):
        columns["implicit reward by its own derivation"] = [text or NONE for text in own]
    return markdown_table(list(columns), zip(*columns.values(), strict=True), text_columns=len(columns))


def _annotated(runs: Sequence[Run]) -> Markdown | None:
    """The runs' own ``tags`` and ``notes``, where any has them."""
    rows = []
    for run in runs:
        tags, notes = run.resolved.get("tags"), run.resolved.get("notes")
        tags = tags if isinstance(tags, list) else [tags]
        words = [", ".join(str(tag) for tag in tags if tag), str(notes or "")]
        if any(words):
            rows.append([code(run.name), *(word or NONE for word in words)])
    return markdown_table(["run", "tags", "notes"], rows, text_columns=3) if rows else None


def _end(group: RunGroup) -> dict[str, Any]:
    """Signs of the final chosen log-ratio by seed, and the change of the margin over training."""
    chosen = group.finals(shown_metrics.CHOSEN.final)
    counts = {
        "above 0": sum(value > 0 for value in chosen),
        "below 0": sum(value < 0 for value in chosen),
        "at 0": sum(value == 0 for value in chosen),
        "not a number": sum(math.isnan(value) for value in chosen),
    }
    margins = group.curves(shown_metrics.MARGIN.curve)
    ends = [(curve[min(curve)], curve[max(curve)]) for curve in margins]
    return {
        "label": group.label,
        "seeds": len(chosen),
        "signs": ", ".join(f"{side} in {count} of {len(chosen)}" for side, count in counts.items() if count),
        "chosen": spread(estimate(chosen)),
        "margin": [number(sum(values) / len(values)) for values in zip(*ends, strict=True)],
        "grown": sum(after > before for before, after in ends),
        "curves": len(ends),
    }


def _costs(groups: Sequence[RunGroup]) -> Markdown:
    rows = []
    for group in groups:
        seconds, memory = (
            estimate([as_float(v) for run in group.finished if isinstance(v := run.summary.get(key), int | float)])
            for key in ("wall_seconds", "peak_memory_bytes")
        )
        peak = NONE if memory is None else number(memory.mean / 2**20)
        rows.append([code(group.label), facts.steps(group.finished) or NONE, spread(seconds), peak])
    return markdown_table(["setting", "steps", "wall time (s)", "peak memory (MiB)"], rows)


def _left_out(groups: Sequence[RunGroup]) -> Markdown:
    rows = []
    for group in groups:
        for run in (run for run in group.runs if not run.finished):
            last = NONE if run.last_step is None else str(run.last_step)
            rows.append([code(run.name), code(group.label), run.status, last, shorten(run.error or NONE)])
    return markdown_table(["run", "setting", "status", "last step logged", "error"], rows, text_columns=5)


def _joined(entries: dict[str, str]) -> str:
    return ", ".join(f"{key} {shorten(value, 80)}" for key, value in entries.items())
