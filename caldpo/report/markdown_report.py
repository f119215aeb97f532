"""``report.md``: what was compared, the pictures, the tables, and what can be read off them. No opinions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caldpo.metric_definitions import MetricDefinition
from caldpo.report import comparison_facts as facts
from caldpo.report import evaluation_section as evaluation
from caldpo.report import shown_metrics
from caldpo.report.escaping import code, command, plain, shell_block
from caldpo.report.grouping import Setting, by_seed, differences
from caldpo.report.run_files import as_float
from caldpo.report.statistics import BandKind, estimate
from caldpo.report.table_cells import NONE, cells, markdown_table, shorten, spread
from caldpo.utils.text_format import number

RULE = (
    "Bold: the mean is better than that of every other setting by more than the 95 % interval of their"
    " difference (Student's t, pooled variance, not corrected for the number of comparisons). With a single"
    " seed nothing is marked, nor where neither direction is plainly better."
)
_MOST_VALUES = 6  # of a key in which settings differ
BANDS = {"range": "from the lowest to the highest seed", "sd": "one standard deviation to either side"}


def report(
    settings: Sequence[Setting],
    folder: Path,
    kind: BandKind,
    pictures: Sequence[str],
    tasks: Sequence[Sequence[str]] | None,
    *,
    compared: Sequence[Path] = (),
    failed: Sequence[str] = (),
) -> str:
    """The report as Markdown.

    Args:
        settings: all, also those of which no run finished.
        folder: that the report lies in.
        kind: what the bands of the curves show.
        pictures: names of the figures that were drawn.
        tasks: overrides that started each sweep, where they are known.
        compared: folders that were compared, where they are others.
        failed: which figures could not be drawn, and why.
    """
    sections = [
        f"# Comparison of {', '.join(plain(folder.name) for folder in compared or [folder])}",
        _incomplete(settings),
        _compared(settings),
        _dynamics(settings, kind, "reward_dynamics.png" in pictures),
        _held_out(settings),
        _oracle(settings, "reward_kl.png" in pictures and "oracle" not in evaluation.suites_of(settings)),
        evaluation.section(settings, pictures),
        _terms("loss_terms.png" in pictures),
        _cost(settings),
        _unfinished(settings),
        _remarks(settings, failed),
        _how_to_read(settings),
        _reproduce(settings, tasks or ()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _incomplete(settings: Sequence[Setting]) -> str:
    """At the head: which runs are missing from everything below, and which settings rest on fewer seeds for that."""
    runs = facts.unfinished_runs(settings)
    if not runs:
        return ""
    total = sum(len(setting.runs) for setting in settings)
    told = [f"- {code(run.name)}: {plain(run.status)}, {run.progress}" for run in runs]
    bare = [code(s.label) for s in settings if not s.finished]
    fewer = [f"{code(s.label)} ({_seeds(s)})" for s in settings if s.finished and s.seeds < len(by_seed(s.runs))]
    said = [f"**Incomplete: {len(runs)} of {total} runs did not finish**, and enter no mean, curve or table below."]
    said += [f"Without any figure: {', '.join(bare)}."] if bare else []
    said += [f"With fewer seeds than were started: {', '.join(fewer)}."] if fewer else []
    return " ".join(said) + "\n\n" + "\n".join(told)


def _compared(settings: Sequence[Setting]) -> str:
    finished = facts.finished_runs(settings)
    total = sum(len(setting.runs) for setting in settings)
    data = {k: v for k, v in facts.shared_facts(finished, "data").items() if k.count(".") <= 1}
    lines = {
        "data": facts.choice(finished, "data"),
        "model": facts.choice(finished, "model"),
        "policy": facts.varied(finished, lambda run: run.summary.get("policy")),
        "optimiser steps": facts.steps(finished),
        "seeds": facts.varied(finished, lambda run: run.seed, limit=20),
        "runs": f"{len(finished)} of {total} finished, {len(settings)} settings",
        "unit of rewards": facts.unit_text(finished),
        "about the data": _joined(data),
        "versions": _joined(facts.shared_facts(finished, "versions")),
    }
    table = markdown_table(["", ""], [(k, v) for k, v in lines.items() if v], text_columns=2)
    said = ["## What was compared", table]
    formulas = {s.label: facts.varied(s.finished, lambda run: run.summary.get("formula")) for s in settings}
    if any(formulas.values()):
        columns = {
            "setting": [code(s.label) for s in settings],
            "loss per pair": [code(formula) if (formula := formulas[s.label]) else NONE for s in settings],
        }
        own = [facts.own_reward(s) for s in settings]
        columns |= {"implicit reward by its own derivation": [text or NONE for text in own]} if any(own) else {}
        said.append(markdown_table(list(columns), zip(*columns.values(), strict=True), text_columns=len(columns)))
    beyond = facts.unfair_differences(differences([s.config for s in settings]))
    if beyond:
        told = "; ".join(f"{code(key)} ({_values(values)})" for key, values in beyond.items())
        said.append(f"Beside the loss, the settings differ in: {told}.")
    return "\n\n".join(said)


def _dynamics(settings: Sequence[Setting], kind: BandKind, picture: bool) -> str:
    shown = [setting for setting in settings if setting.finished]
    rows = [_end(setting) for setting in shown]
    figure = [
        "![Held-out log-ratios, implicit rewards, accuracy and displacement](reward_dynamics.png)",
        f"Means over seeds on held-out pairs, evaluated during training; bands reach {BANDS[kind]}."
        f" Upper row in nats, lower row in {facts.reward_unit(shown)}. An axis marked logarithmic is linear around 0."
        " The same as vectors: [reward_dynamics.svg](reward_dynamics.svg).",
    ]
    ended = "Where the chosen log-ratio ended, and how the margin moved from first to last evaluation:"
    return "\n\n".join(["## Reward dynamics", *(figure if picture else []), ended, "\n".join(rows)])


def _end(setting: Setting) -> str:
    """One bullet: the sign of the final chosen log-ratio by seed, and the change of the margin."""
    chosen = setting.finals(shown_metrics.CHOSEN.final)
    if not chosen:
        return f"- {code(setting.label)}: no held-out log-ratios."
    counts = {
        "above 0": sum(value > 0 for value in chosen),
        "below 0": sum(value < 0 for value in chosen),
        "at 0": sum(value == 0 for value in chosen),
        "not a number": sum(math.isnan(value) for value in chosen),
    }
    signs = ", ".join(f"{side} in {count} of {len(chosen)}" for side, count in counts.items() if count)
    mean = estimate(chosen)
    said = f"- {code(setting.label)}: chosen {signs} seed{'s' if len(chosen) > 1 else ''} ({spread(mean)} nats)"
    margins = setting.curves(shown_metrics.MARGIN.curve)
    ends = [(curve[min(curve)], curve[max(curve)]) for curve in margins]
    if ends:
        first, last = (sum(values) / len(values) for values in zip(*ends, strict=True))
        grew = sum(after > before for before, after in ends)
        said += f"; margin from {number(first)} to {number(last)} nats, grown in {grew} of {len(ends)}"
    return said + "."


def _held_out(settings: Sequence[Setting]) -> str:
    return f"## Final figures on held-out pairs\n\n{_figures(settings, shown_metrics.HELD_OUT)}\n\n{_statistics()}"


def _oracle(settings: Sequence[Setting], picture: bool) -> str:
    present = [metric for metric in shown_metrics.ORACLE if any(s.finals(metric.final) for s in settings)]
    if not present:
        return ""
    said = ["## Against the known reward", _figures(settings, present), "Measured by each run when its training ended."]
    if picture:
        said.append("![True reward against KL to the reference](reward_kl.png)")
    return "\n\n".join(said)


def _figures(settings: Sequence[Setting], metrics: Sequence[MetricDefinition]) -> str:
    columns = [cells(settings, metric, "**{}**") for metric in metrics]
    header = ["setting", "seeds", *(f"{metric.title} ({facts.unit(metric, settings)})" for metric in metrics)]
    rows = [[code(s.label), _seeds(s), *(column[s.label] for column in columns)] for s in settings]
    return markdown_table(header, rows)


def _statistics() -> str:
    return f"Mean ± standard deviation over seeds (n - 1), at the last step. {RULE}"


def _seeds(setting: Setting) -> str:
    started = len(by_seed(setting.runs))
    return str(setting.seeds) if setting.seeds == started else f"{setting.seeds} of {started}"


def _terms(picture: bool) -> str:
    if not picture:
        return ""
    return (
        "## Terms of the losses\n\n![Shares of the loss terms](loss_terms.png)\n\n"
        "Share of each term in the sum of the terms' absolute values, held-out pairs, mean over seeds."
        " Losses of a single term are left out."
    )


def _cost(settings: Sequence[Setting]) -> str:
    rows = []
    for setting in settings:
        seconds, memory = (
            estimate([as_float(v) for run in setting.finished if isinstance(v := run.summary.get(key), int | float)])
            for key in ("wall_seconds", "peak_memory_bytes")
        )
        peak = NONE if memory is None else number(memory.mean / 2**20)
        rows.append([code(setting.label), facts.steps(setting.finished) or NONE, spread(seconds), peak])
    measured = facts.varied(facts.finished_runs(settings), lambda run: run.summary.get("peak_memory_of"))
    note = "Wall time of the whole run, evaluation included, on the machine as it was; runs may have shared it."
    note += f" Peak memory: {measured}." if measured else ""
    table = markdown_table(["setting", "steps", "wall time (s)", "peak memory (MiB)"], rows)
    return f"## Cost\n\n{table}\n\n{note}"


def _unfinished(settings: Sequence[Setting]) -> str:
    runs = [(setting, run) for setting in settings for run in setting.runs if not run.finished]
    if not runs:
        return "## Runs that did not finish\n\nNone."
    rows = [
        (code(run.name), code(s.label), run.status, _or_none(run.last_step), shorten(run.error or NONE))
        for s, run in runs
    ]
    table = markdown_table(["run", "setting", "status", "last step logged", "error"], rows, text_columns=5)
    return f"## Runs that did not finish\n\nThey enter no mean, curve or table above.\n\n{table}"


def _remarks(settings: Sequence[Setting], failed: Sequence[str]) -> str:
    """What a reader should know about the finished runs' files, where there is anything."""
    told = [f"- {plain(said)}" for said in failed]
    told += [f"- {code(run.name)}: {plain(note)}" for run in facts.finished_runs(settings) for note in run.notes]
    for setting in settings:
        for repeats in by_seed(setting.finished):
            if len(repeats) > 1:
                names = ", ".join(code(run.name) for run in repeats)
                told.append(f"- {names}: the same setting and seed; their mean counts as one seed.")
    return "## Remarks\n\n" + "\n".join(told) if told else ""


def _how_to_read(settings: Sequence[Setting]) -> str:
    shown = [
        *shown_metrics.HELD_OUT,
        *(metric for metric in shown_metrics.ORACLE if any(s.finals(metric.final) for s in settings)),
    ]
    lines = [f"- **{metric.title}** ({facts.unit(metric, settings)}): {metric.meaning}." for metric in shown]
    lines += evaluation.meanings(settings)
    return (
        "## How to read this\n\n"
        "pi is the trained policy, pi_ref the frozen reference; log-probs are summed over a response, in"
        " nats. Every loss is measured alike, also one that is trained without a reference. A falling chosen"
        " log-ratio is not by itself a failure, nor a rising one a success: see it beside margin, accuracy"
        " and, where it is known, the true reward. Means over few seeds are uncertain, and hold for the data,"
        " model and settings named above alone.\n\n" + "\n".join(lines)
    )


def _reproduce(settings: Sequence[Setting], tasks: Sequence[Sequence[str]]) -> str:
    train = ["python", "-m", "caldpo.train"]
    commands = [
        f"{command([*train, *run.overrides])}  # {command([run.name])}" for setting in settings for run in setting.runs
    ]
    sweeps = shell_block([command([*train, "-m", *task]) for task in tasks])
    whole = f"The sweep{'s' if len(tasks) > 1 else ''}:\n\n{sweeps}\n\n" if tasks else ""
    return (
        f"## How to reproduce\n\n{whole}Each run by itself (its complete configuration is the `config.yaml`"
        f" in its folder):\n\n{shell_block(commands)}\n\nEvery run's final figures:"
        " [comparison.csv](comparison.csv), where metrics without a prefix are of the last training step."
    )


def _joined(entries: dict[str, str]) -> str:
    return ", ".join(f"{key} {shorten(value, 80)}" for key, value in entries.items())


def _values(values: Sequence[Any]) -> str:
    """Distinct values of a key, the first of many."""
    more = f" and {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else ""
    return ", ".join(plain(shorten(str(value), 60)) for value in values[:_MOST_VALUES]) + more


def _or_none(value: Any) -> str:
    return NONE if value is None else str(value)
