"""Tables of suites of evaluation for ``report.md``, and what their reader has to know: what was not measured alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caldpo.metric_definitions import REWARD_UNIT, MetricDefinition
from caldpo.report.comparison_facts import finished_runs, varied
from caldpo.report.escaping import Markdown, code, listed
from caldpo.report.evaluation_results import evaluated, evaluated_seeds, main_metrics, own_intervals, suites_of
from caldpo.report.grouping import RunGroup, differences
from caldpo.report.run_files import Run
from caldpo.report.table_cells import NONE, cells, markdown_table, seeds_text
from caldpo.utils.yaml_io import flatten

# Figures of single suites, with their captions.
PICTURES = {
    "preference": ("calibration.png", "Claimed against observed preference probability"),
    "displacement": ("displacement.png", "Log-ratios of chosen and rejected responses, and pairs of which both fell"),
    "oracle": ("reward_kl.png", "True reward against KL to the reference"),
}
_UNIT = "settings.reward_beta"
_BY_SEED = {"pairs": "held-out pairs", "reference": "references"}  # what follows from data and seed, with its name


def suite_sections(groups: Sequence[RunGroup], pictures: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the report shows of each suite; ``pictures``: names of the figures that were drawn."""
    sections = []
    for suite in suites_of(groups):
        metrics = main_metrics(groups, suite)
        picture, caption = PICTURES.get(suite, ("", ""))
        section: dict[str, Any] = {"name": suite, "metrics": metrics, "caption": caption}
        section["table"] = _table(groups, suite, metrics) if metrics else None
        section["faults"], section["notes"] = faults(groups, suite), _notes(groups, suite)
        section["picture"] = picture if picture in pictures else None
        sections.append(section)
    return sections


def faults(groups: Sequence[RunGroup], suite: str) -> list[Markdown]:
    """List what keeps the figures of a suite from being compared, a sentence each."""
    runs = _runs(groups, suite)
    facts = {run.name: _facts(run, suite) for run in runs}
    missing = [run for run in finished_runs(groups) if suite not in run.evaluation]
    sentences = [f"Not evaluated: {_names(groups, missing)}."] if missing else []
    varying = differences([_settings(facts[run.name]) for run in runs])
    if varying:
        keys = "; ".join(f"{code(key)} ({listed(values)})" for key, values in varying.items())
        sentences.append(f"Not measured alike, the evaluations differ in: {keys}.")
    if _UNIT in varying:
        sentences.append("Margins, calibration and slopes are in several units: evaluate all with one `reward_beta=`.")
    for key, title in _BY_SEED.items():
        values: dict[str, set[str]] = {}
        for run in runs:
            if (value := facts[run.name].get(key)) is not None:
                values.setdefault(str(run.seed), set()).add(str(value))
        seeds = [seed for seed, several in values.items() if len(several) > 1]
        if seeds:
            sentences.append(f"Not measured alike, runs of the same seed ({', '.join(seeds)}) had different {title}.")
    early = []
    for run in runs:
        step, last = facts[run.name].get("step"), run.summary.get("steps")
        if None not in (step, last) and step != last:
            early.append(run)
    if early:
        steps = varied(early, lambda run: facts[run.name].get("step"))
        sentences.append(f"Not the final policy but that of step {steps}: {_names(groups, early)}.")
    return [Markdown(sentence) for sentence in sentences]


def _table(groups: Sequence[RunGroup], suite: str, metrics: Sequence[MetricDefinition]) -> Markdown:
    units = [_settings(_facts(run, suite)).get(_UNIT) for run in _runs(groups, suite)]
    betas = {str(beta) for beta in units if beta is not None}
    mark = "**{}**" if len(betas) < 2 else "{}"  # of several units none is the best
    columns = [cells(groups, metric, mark, own_intervals(groups, metric)) for metric in metrics]
    header = ["setting", "seeds", "examples", *(_header(metric, betas) for metric in metrics)]
    rows = []
    for group in groups:
        first = [code(group.label), seeds_text(group, evaluated_seeds(group, suite)), _examples(group, suite)]
        rows.append([*first, *(column[group.label] for column in columns)])
    return markdown_table(header, rows)


def _header(metric: MetricDefinition, betas: set[str]) -> str:
    """Title and unit; that of rewards with its number where the evaluations have one in common."""
    unit = f"{min(betas)} x nats" if metric.unit == REWARD_UNIT and len(betas) == 1 else metric.unit
    return f"{metric.title} ({unit})" if unit else metric.title


def _examples(group: RunGroup, suite: str) -> str:
    examples = (run.evaluation[suite].get("examples") for run in evaluated(group, suite))
    counts = [count for count in examples if isinstance(count, int)]
    return NONE if not counts else " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _notes(groups: Sequence[RunGroup], suite: str) -> list[tuple[str, Markdown | None]]:
    """The notes of the results, each once, with the runs that have it unless all do."""
    runs = _runs(groups, suite)
    having: dict[str, list[Run]] = {}
    for run in runs:
        for note in run.evaluation[suite].get("notes") or ():
            having.setdefault(str(note), []).append(run)
    return [(note, None if len(some) == len(runs) else _names(groups, some)) for note, some in having.items()]


def _runs(groups: Sequence[RunGroup], suite: str) -> list[Run]:
    return [run for group in groups for run in evaluated(group, suite)]


def _names(groups: Sequence[RunGroup], runs: Sequence[Run]) -> Markdown:
    """Runs by group and seed: their folders' names may be long."""
    folders = {run.name for run in runs}
    names = []
    for group in groups:
        seeds = [str(run.seed) for run in group.finished if run.name in folders]
        if seeds:
            names.append(f"{code(group.label)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})")
    return Markdown(", ".join(names))


def _facts(run: Run, suite: str) -> Mapping[str, Any]:
    facts = run.evaluation[suite].get("determined_by")
    return facts if isinstance(facts, Mapping) else {}


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of suite and command, and versions, flat; without ``checkpoint``, which the step stands for."""
    settings = flatten({part: facts.get(part, {}) for part in ("suite", "settings", "versions")})
    settings.pop("settings.checkpoint", None)
    return settings
