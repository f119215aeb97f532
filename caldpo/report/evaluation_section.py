"""``report.md``: a table per suite of evaluation, and what its reader has to know beside it."""

from __future__ import annotations

from collections.abc import Sequence

from caldpo.metric_definitions import REWARD_UNIT, MetricDefinition
from caldpo.report.escaping import code, plain
from caldpo.report.evaluation_measures import evaluated, evaluated_seeds, main_metrics, own_intervals, suites_of
from caldpo.report.evaluation_mismatches import faults, names, reward_units
from caldpo.report.grouping import Setting, by_seed
from caldpo.report.run_files import Run
from caldpo.report.table_cells import NONE, cells, markdown_table

# Figures of single suites, with their captions.
PICTURES = {
    "preference": ("calibration.png", "Claimed against observed preference probability"),
    "displacement": ("displacement.png", "Log-ratios of chosen and rejected responses, and pairs of which both fell"),
    "oracle": ("reward_kl.png", "True reward against KL to the reference"),
}
RULE = (
    "Mean ± standard deviation over seeds, bold by the rule above. Where a setting has a single seed: its figure and"
    " the interval within that run [low, high]; where all have one, bold if the interval lies wholly on the better side"
    " of every other's. Such an interval holds the chance of the examples, not that of the training."
)


def section(settings: Sequence[Setting], pictures: Sequence[str]) -> str:
    """The whole section; empty where no finished run was evaluated."""
    suites = suites_of(settings)
    if not suites:
        return ""
    head = "From the `evaluation/SUITE.json` in the runs' folders, written by `python -m caldpo.evaluate`. "
    parts = [_of_suite(settings, suite, pictures) for suite in suites]
    return "\n\n".join(["## Evaluation", head + RULE, *parts])


def meanings(settings: Sequence[Setting]) -> list[str]:
    """A bullet per main measure, for the list of what figures mean."""
    return [
        f"- **{plain(metric.title)}** ({plain(suite)}, {plain(metric.unit)}): {plain(metric.meaning)}."
        for suite in suites_of(settings)
        for metric in main_metrics(settings, suite)
    ]


def _of_suite(settings: Sequence[Setting], suite: str, pictures: Sequence[str]) -> str:
    table = _table(settings, suite) if main_metrics(settings, suite) else "No main measures; all are in comparison.csv."
    said = [f"### {plain(suite)}", table, *(f"**{fault}**" for fault in faults(settings, suite))]
    if noted := _notes(settings, suite):
        said.append("\n".join(noted))
    picture, caption = PICTURES.get(suite, ("", ""))
    if picture in pictures:
        said.append(f"![{caption}]({picture})")
    return "\n\n".join(said)


def _table(settings: Sequence[Setting], suite: str) -> str:
    shown = main_metrics(settings, suite)
    mark = "**{}**" if len(reward_units(settings, suite)) < 2 else "{}"  # of several units none is the best
    columns = [cells(settings, metric, mark, own_intervals(settings, metric)) for metric in shown]
    rows = [
        [code(s.label), _seeds(s, suite), _examples(s, suite), *(column[s.label] for column in columns)]
        for s in settings
    ]
    header = [_header(metric, reward_units(settings, suite)) for metric in shown]
    return markdown_table(["setting", "seeds", "examples", *header], rows)


def _header(metric: MetricDefinition, betas: set[str]) -> str:
    """Title and unit; that of rewards with its number where the evaluations have one in common."""
    unit = f"{min(betas)} x nats" if metric.unit == REWARD_UNIT and len(betas) == 1 else metric.unit
    return f"{metric.title} ({unit})" if unit else metric.title


def _seeds(setting: Setting, suite: str) -> str:
    """Seeds that were evaluated, of those that were started."""
    found, started = evaluated_seeds(setting, suite), len(by_seed(setting.runs))
    return str(found) if found == started else f"{found} of {started}"


def _examples(setting: Setting, suite: str) -> str:
    found = (run.evaluation[suite].get("examples") for run in evaluated(setting, suite))
    counts = [count for count in found if isinstance(count, int)]
    return NONE if not counts else " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _notes(settings: Sequence[Setting], suite: str) -> list[str]:
    """What the results say of themselves: each note once, with the runs that have it unless all do."""
    runs = [run for setting in settings for run in evaluated(setting, suite)]
    noted: dict[str, list[Run]] = {}
    for run in runs:
        for note in run.evaluation[suite].get("notes") or ():
            noted.setdefault(str(note), []).append(run)
    return [
        f"- {plain(note)}{'' if len(of) == len(runs) else f' ({names(settings, of)})'}" for note, of in noted.items()
    ]
