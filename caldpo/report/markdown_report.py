"""Fill ``report.md.j2``: what was compared, the pictures, the tables, and what can be read off them. No opinions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caldpo.report import comparison_facts as facts
from caldpo.report import report_rows, shown_metrics
from caldpo.report.escaping import Markdown, code, command, render
from caldpo.report.evaluation_tables import suite_sections
from caldpo.report.grouping import RunGroup
from caldpo.report.planned_runs import not_begun
from caldpo.report.run_files import as_float
from caldpo.report.statistics import BandKind, estimate
from caldpo.report.table_cells import NONE, markdown_table, metrics_table, spread
from caldpo.report.unlike_runs import unlike
from caldpo.utils.text_format import number

TEMPLATE = Path(__file__).with_name("report.md.j2")
BANDS = {"range": "from the lowest to the highest seed", "sd": "one standard deviation to either side"}


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
        not_begun=not_begun(folders, len(runs)),
        unmeasured=[group.label for group in groups if not group.finished],
        fewer=[group for group in measured if group.seeds < group.started_seeds],
        unlike=unlike(groups),
        what=markdown_table(["", ""], report_rows.fact_rows(groups), text_columns=2),
        formulas=_formulas(groups),
        beyond=facts.unfair_differences(groups),
        annotated=_text_table(["run", "tags", "notes"], report_rows.annotated_rows(runs)),
        pictures=pictures,
        band=BANDS[kind],
        reward_unit=facts.reward_unit(measured),
        ends=[_end(group) for group in measured],
        held_out=metrics_table(groups, shown_metrics.HELD_OUT),
        oracle=metrics_table(groups, oracle) if oracle else None,
        suites=suite_sections(groups, pictures),
        costs=_costs(groups),
        peak_memory_of=facts.varied(facts.finished_runs(groups), lambda run: run.summary.get("peak_memory_of")),
        left_out=_text_table(
            ["run", "setting", "status", "last step logged", "error"], report_rows.unfinished_rows(groups), codes=2
        ),
        remarks=report_rows.remark_rows(groups, failed),
        meanings=[(metric, facts.unit(metric, groups)) for metric in (*shown_metrics.HELD_OUT, *oracle)],
        sweeps=report_rows.sweep_commands(tasks),
        commands=[f"{text}  # {command([name])}" for name, text in report_rows.run_commands(runs)],
    )


def _text_table(header: Sequence[str], rows: Sequence[Sequence[str]], codes: int = 1) -> Markdown | None:
    """Lay out rows of text, the first ``codes`` columns as code; None without rows."""
    cells = [[*map(code, row[:codes]), *row[codes:]] for row in rows]
    return markdown_table(header, cells, text_columns=len(header)) if rows else None


def _formulas(groups: Sequence[RunGroup]) -> Markdown | None:
    rows = report_rows.formula_rows(groups)
    if not rows:
        return None
    header = ["setting", "loss per pair", "implicit reward by its own derivation"][: len(rows[0])]
    cells = [
        [code(label), code(formula) if formula else NONE, *(text or NONE for text in own)]
        for label, formula, *own in rows
    ]
    return markdown_table(header, cells, text_columns=len(header))


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
