"""Write README's table of results from the tables of a study: ``python docs/results.py [FOLDER]``.

The table stands between the two markers below: the losses that most readers know, the highest three, and the rows
beside the losses; all others are in the study's page. What the seeds do not show, it does not say: a row is called
above or below DPO only where the study's corrected test does.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
FOLDER = Path(__file__).parent / "study"
BEGIN = "<!-- results: python docs/results.py -->"
END = "<!-- end of results -->"
CHOICE = "practitioner"
NAMED = ("dpo", "f_dpo", "ipo", "slic", "cpo", "sft", "cal_dpo", "sppo", "simpo", "orpo", "kto")
HIGHEST = 3  # losses of the highest true reward that are shown, whatever their names
Row = Mapping[str, str]


def main(arguments: Sequence[str], readme: Path = README) -> int:
    """Write the table; returns the exit code, 1 with a line that tells why nothing was written."""
    folder = Path(arguments[0]) if arguments else FOLDER
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        print(f"{readme}: nothing written: add these two lines where the table is to stand:\n{BEGIN}\n{END}")
        return 1
    if not (folder / "runs.csv").is_file():
        print(f"{folder}: nothing written: it has no study: python -m caldpo.study report={folder}")
        return 1
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    readme.write_text(f"{before}{BEGIN}\n\n{results(folder)}\n\n{after}", encoding="utf-8")
    return 0


def results(folder: Path) -> str:
    """Lay out a table per condition, and what it does and does not show."""
    conditions = dict.fromkeys(row["condition"] for row in read(folder / "runs.csv"))
    differences = read(folder / "differences.csv")
    return "\n\n".join(of_condition(name, read(folder / f"{name}.csv"), differences) for name in conditions)


def of_condition(condition: str, means: Sequence[Row], differences: Sequence[Row]) -> str:
    """Lay out the rows of a condition by true reward, with what differs from DPO, and one sentence below."""
    rows = sorted((row for row in means if row["choice"] == CHOICE), key=lambda row: -value(row["reward"], -math.inf))
    to_dpo = {
        row["row"]: row
        for row in differences
        if (row["condition"], row["choice"], row["measure"]) == (condition, CHOICE, "reward")
    }
    head = [
        "row",
        "true reward (95 % interval)",
        "to DPO",
        "at matched KL",
        "win rate",
        "KL (nats)",
        "chosen log-ratio",
    ]
    lines = [head, [":--", *["--:"] * (len(head) - 1)]]
    highest = [row["row"] for row in rows if row["kind"] == "loss"][:HIGHEST]
    shown = [row for row in rows if row["kind"] != "loss" or row["row"] in (*NAMED, *highest)]
    for row in shown:
        reward = f"{number(row['reward'])} ({number(row['reward_low'])} to {number(row['reward_high'])})"
        measures = [number(row[key]) for key in ("reward_at_kl", "win_rate", "kl", "chosen_log_ratio")]
        lines.append([f"`{row['row']}`", reward, verdict(to_dpo.get(row["row"])), *measures])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    seeds = max(int(row["seeds"]) for row in rows)
    different = [name for name, row in to_dpo.items() if row["significant"] == "True"]
    said = "nothing is compared with DPO."
    if to_dpo:
        differ = f"{len(different)} of {len(to_dpo)} rows differ from DPO after Holm's correction"
        said = f"{differ}; the others are not told apart from it."
    fewer = [f"`{row['row']}` ({row['seeds']})" for row in rows if int(row["seeds"]) < seeds]
    if fewer:
        said += f" Only the seeds that did not diverge count, here fewer: {', '.join(fewer)}."
    left_out = len(rows) - len(shown)
    if left_out:
        said += f" {left_out} more rows: [the study](docs/study/index.md#{condition})."
    return f"{table}\n\n`{condition}`, {seeds} seeds: {said}"


def verdict(difference: Row | None) -> str:
    """Write a difference with its sign where it is significant, else in brackets."""
    if difference is None or not math.isfinite(value(difference["difference"])):
        return "-"
    text = f"{float(difference['difference']):+.2f}"
    return f"**{text}**" if difference["significant"] == "True" else f"({text})"


def read(path: Path) -> list[Row]:
    """Read a table."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def value(text: str, unknown: float = math.nan) -> float:
    """Read a number; an empty cell is unknown."""
    return float(text) if text else unknown


def number(text: str) -> str:
    """Write a number with two decimals."""
    return f"{float(text):.2f}" if text else "-"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
