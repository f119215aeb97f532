"""Write a study's report: tables as csv, figures, and the page that reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from caldpo.report.escaping import Markdown, code, render
from caldpo.report.plot_style import save
from caldpo.report.table_cells import markdown_table
from caldpo.studies.measure_definitions import MEASURES
from caldpo.studies.setting_choice import CHOICES, PRACTITIONER
from caldpo.studies.study_figures import critical_differences, reward_against_kl, rewards
from caldpo.studies.study_frontiers import frontiers
from caldpo.studies.study_results import LEVEL, TESTED, StudyResults
from caldpo.studies.study_settings import BASELINE
from caldpo.studies.study_statistics import Ranking
from caldpo.utils.atomic_io import atomic_text, write_text

PAGE = "index.md"
TEMPLATE = Path(__file__).with_name("study_page.md.j2")
SHOWN = ("reward", "reward_at_kl", "win_rate", "kl", "reverse_kl", "accuracy", "slope", "calibration_error", "brier")
EXACT = ("exact_reward", "regret", "kl_to_optimum", "kl_from_optimum")
_TEXT = ("length", "entropy", "distinct_1", "distinct_2")
ALSO_SHOWN = (*EXACT, "chosen_log_ratio", "rejected_log_ratio", "displaced", *_TEXT)
_DIGITS = 6


def write_report(results: StudyResults, folder: Path) -> None:
    """Write all files of the report; the same records give the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    means = {condition: results.means(condition) for condition in results.conditions}
    tables = {"trials": results.trials, "runs": results.runs, "differences": results.differences}
    paths = frontiers(results)
    tables |= {"choice_effects": results.choice_effects, "ranks": _ranks(results), "frontiers": paths}
    for name, table in {**tables, **means}.items():
        with atomic_text(folder / f"{name}.csv") as file:
            file.write(table.round(_DIGITS).to_csv(index=False, lineterminator="\n"))
    for condition, table in means.items():
        save(rewards(table, f"True reward: {condition}"), folder / f"rewards_{condition}.svg", dpi=100)
        for choice in CHOICES:
            figure = reward_against_kl(
                table,
                paths[paths["condition"] == condition],
                choice,
                results.settings.matched_kl,
                f"True reward against KL: {condition}, chosen by {choice}",
            )
            save(figure, folder / f"reward_kl_{condition}_{choice}.svg", dpi=100)
    for choice in CHOICES:
        if (ranks := results.ranks(choice)) is not None:
            save(critical_differences(ranks, f"Chosen by {choice}"), folder / f"ranks_{choice}.svg", dpi=100)
    write_text(folder / PAGE, _page(results, means))


def print_outcome(results: StudyResults, folder: Path) -> None:
    """Print each condition's rows by true reward, and where the report is."""
    console = Console(highlight=False)
    for condition in results.conditions:
        table = Table(
            title=f"{condition}: setting chosen by the practitioner's measures, {results.settings.seeds} seeds"
        )
        for column in ("row", "true reward", "95 % interval", "to dpo", "p (Holm)", "win rate", "KL", "best"):
            table.add_column(column, justify="left" if column == "row" else "right")
        means = results.means(condition)
        for _, cells in means[means["choice"] == PRACTITIONER].iterrows():
            difference = _difference(results, condition, PRACTITIONER, cells["row"])
            table.add_row(
                cells["row"],
                _number(cells["reward"]),
                f"{_number(cells['reward_low'])} to {_number(cells['reward_high'])}",
                _number(difference["difference"]) if difference else "",
                _number(difference["p_holm"], 3) if difference else "",
                _number(cells["win_rate"]),
                _number(cells["kl"], 1),
                _number(cells["probability_best"]),
            )
        console.print(table)
    for condition, row in results.without_setting:
        console.print(f"no setting was finite in all its steps: {row} under {condition}")
    for condition, row in results.unfinished:
        console.print(f"not in the report, since runs are missing: {row} under {condition}")
    console.print(f"report: {folder / PAGE}")


def _page(results: StudyResults, means: dict[str, pd.DataFrame]) -> str:
    records = results.records
    settings = results.settings
    versions = Counter(tuple(sorted(record["versions"].items())) for record in records)
    wall = sum(record["wall_seconds"] for record in records)
    return render(
        TEMPLATE,
        settings=settings,
        baseline=BASELINE,
        level=LEVEL,
        choices=CHOICES,
        commands=[Markdown(command) for command in results.commands],
        versions=[" ".join(f"{k} {v}" for k, v in found) for found in versions],
        runs=len(records),
        diverged=sum(record["status"] != "finished" for record in records),
        cpu_hours=sum(record["cpu_seconds"] for record in records) / 3600,
        wall_hours=wall / 3600 / max(1, settings.workers),
        conditions=[_condition(results, name, table) for name, table in means.items()],
        ranks={choice: _rank_facts(ranks) for choice in CHOICES if (ranks := results.ranks(choice)) is not None},
        measures=markdown_table(
            ["name in the csv files", "what", "unit", "better"],
            [(code(name), m.title, m.unit, m.better or "-") for name, m in MEASURES.items()],
            text_columns=4,
        ),
        titles={name: m.title for name, m in MEASURES.items()},
        scored=sorted({result.row for result in results.arms if result.arm.reads_scores}),
        left_out=results.left_out,
        unfinished=results.unfinished,
        without_setting=results.without_setting,
    )


def _condition(results: StudyResults, condition: str, means: pd.DataFrame) -> dict[str, Any]:
    """What the page says of a condition."""
    effects = results.choice_effects
    return {
        "name": condition,
        "overrides": " ".join(results.settings.condition_overrides.get(condition, [])),
        "choices": {choice: _choice(results, condition, choice, means) for choice in CHOICES},
        "effects": [
            Markdown(f"`{cells['row']}` {cells['difference']:+.2f} ({cells['low']:+.2f} to {cells['high']:+.2f})")
            for _, cells in effects[effects["condition"] == condition].iterrows()
            if cells["significant"]
        ]
        if len(effects)
        else [],
        "same": int(effects[effects["condition"] == condition]["same_setting"].sum()) if len(effects) else 0,
        "tuned": int((effects["condition"] == condition).sum()) if len(effects) else 0,
    }


def _choice(results: StudyResults, condition: str, choice: str, means: pd.DataFrame) -> dict[str, Any]:
    table = means[means["choice"] == choice]
    found = results.differences
    if len(found):
        found = found[(found["condition"] == condition) & (found["choice"] == choice)]
    leader = results.leader(condition, choice)
    of_reward = found[found["measure"] == "reward"] if len(found) else found
    return {
        "table": _markdown(table, ("probability_best", *SHOWN), intervals=("reward", "win_rate")),
        "behaviour": _markdown(table, ALSO_SHOWN),
        "leader": leader and {"row": leader[0], "tied": leader[1]},
        "differences": {
            measure: {sign: _named(found, measure, way) for sign, way in (("above", 1), ("below", -1))}
            for measure in TESTED
        }
        if len(found)
        else {},
        "others": len(of_reward),
        "detectable": _number(of_reward["detectable"].median()) if len(of_reward) else None,
        "corrected": _number(of_reward["detectable_corrected"].median()) if len(of_reward) else None,
        "diverged": [
            Markdown(f"`{cells['row']}` {results.settings.seeds - cells['seeds']} of {results.settings.seeds}")
            for _, cells in table.iterrows()
            if cells["seeds"] < results.settings.seeds
        ],
        "reached": [
            Markdown(f"`{cells['row']}` {cells['reward_at_kl_seeds']}")
            for _, cells in table.iterrows()
            if cells["reward_at_kl_seeds"] < results.settings.seeds
        ],
    }


def _named(found: pd.DataFrame, measure: str, way: int) -> list[str]:
    """Rows that differ significantly from the baseline in a measure, above or below it."""
    table = found[(found["measure"] == measure) & found["significant"] & (way * found["difference"] > 0)]
    return [
        Markdown(f"`{cells['row']}` {cells['difference']:+.2f} ({cells['low']:+.2f} to {cells['high']:+.2f})")
        for _, cells in table.sort_values("difference", ascending=way < 0).iterrows()
    ]


def _markdown(table: pd.DataFrame, measures: Sequence[str], intervals: Sequence[str] = ()) -> Markdown:
    """Lay out a table; ``intervals`` are the measures that show theirs."""
    measures = [measure for measure in measures if table[measure].notna().any()]
    titles = {"probability_best": "probability of being best"} | {m: d.title for m, d in MEASURES.items()}
    rows = []
    for _, cells in table.iterrows():
        shown = [
            f"{_number(cells[m])} ({_number(cells[f'{m}_low'])} to {_number(cells[f'{m}_high'])})"
            if m in intervals and np.isfinite(cells[m])
            else _number(cells[m], 3 if m.startswith("distinct") else 2)
            for m in measures
        ]
        rows.append([code(cells["row"]), str(cells["seeds"]), *shown])
    return markdown_table(["row", "seeds", *(titles[measure] for measure in measures)], rows)


def _ranks(results: StudyResults) -> pd.DataFrame:
    rows = []
    for choice in CHOICES:
        if (ranks := results.ranks(choice)) is not None:
            facts = {"critical_difference": ranks.critical_difference, "friedman_p": ranks.friedman_p}
            for name, rank in sorted(ranks.ranks.items(), key=lambda item: item[1]):
                rows.append({"choice": choice, "row": name, "rank": rank, "blocks": ranks.blocks, **facts})
    return pd.DataFrame(rows, columns=["choice", "row", "rank", "blocks", "critical_difference", "friedman_p"])


def _rank_facts(ranks: Ranking) -> dict[str, Any]:
    first, *_, last = sorted(ranks.ranks, key=lambda name: ranks.ranks[name])
    return {
        "p": f"{ranks.friedman_p:.2g}",
        "critical": _number(ranks.critical_difference),
        "blocks": ranks.blocks,
        "first": first,
        "apart": [name for name, rank in ranks.ranks.items() if rank - ranks.ranks[first] >= ranks.critical_difference],
        "losses": len(ranks.ranks),
        "last": last,
    }


def _difference(results: StudyResults, condition: str, choice: str, row: str) -> dict[str, Any] | None:
    found = results.differences
    if not len(found):
        return None
    of_row = found[
        (found["condition"] == condition)
        & (found["choice"] == choice)
        & (found["measure"] == "reward")
        & (found["row"] == row)
    ]
    return of_row.iloc[0].to_dict() if len(of_row) else None


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"
