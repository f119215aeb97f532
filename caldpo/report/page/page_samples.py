"""Samples side by side: what each setting answers to a held-out prompt, from the files that runs and evaluations leave.

``evaluation/oracle_samples.jsonl`` has the reference's answer, rewards and log-ratios; ``samples.jsonl`` of a run that
was not evaluated so has the true reward where it is known. A line that cannot be read costs that line.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from caldpo.checkpointing.manifest import SAMPLES
from caldpo.evaluation.suite_base import FOLDER
from caldpo.report.grouping import RunGroup
from caldpo.report.page.page_numbers import plain_number
from caldpo.report.run_files import Run, is_number

ORACLE_SAMPLES = "oracle_samples.jsonl"
_PROMPTS = 40  # of a page
_ANSWERS = 4_000  # of a page
_LONGEST = 4_000  # characters of a text
LinesOf = Callable[[Path], Iterable[Any]]
_SHOWN_CONTROLS = "\n\t"
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn")  # as of escaping.one_line


def samples(groups: Sequence[RunGroup], lines_of: LinesOf | None = None) -> dict[str, Any] | None:
    """Return prompts, each with the answers to it: ``{group, text, reward, log_ratio}``.

    ``group`` is None for the reference, and ``"chosen"`` for the data's preferred response. Of each group the first run
    that has samples answers. ``lines_of`` reads a file as :func:`read_lines`. None where no run has any.
    """
    prompts: dict[str, dict[str, Any]] = {}
    sources, bad, cut = [], 0, False
    most = max(2, min(_PROMPTS, _ANSWERS // max(1, len(groups))))
    for place, group in enumerate(groups):
        run, rows = next(
            ((run, rows) for run in group.finished if (rows := list(_rows(run, lines_of or read_lines)))), (None, [])
        )
        if run is None:
            continue
        sources.append({"group": place, "seed": run.seed, "step": rows[0].get("step")})
        for row in rows:
            if "broken" in row:
                bad += 1
                continue
            entry = prompts.get(row["prompt"])
            if entry is None:
                if len(prompts) == most:
                    cut = True
                    continue
                entry = prompts[row["prompt"]] = {"prompt": _text(row["prompt"]), "answers": {}}
            for key, answer in _answers(place, row):
                entry["answers"].setdefault(key, answer)
    shown = [{"prompt": e["prompt"], "answers": list(e["answers"].values())} for e in prompts.values()]
    return {"prompts": shown, "sources": sources, "bad": bad, "cut": cut, "most": most} if shown else None


def _answers(place: int, row: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The answers of a row, those that all runs share first; of several samples to a prompt the first stays."""
    if "chosen" in row:
        yield "chosen", {"group": "chosen", "text": _text(row["chosen"]), "reward": None, "log_ratio": None}
    if "reference" in row:
        reward = _number(row.get("reference_reward"))
        yield None, {"group": None, "text": _text(row["reference"]), "reward": reward, "log_ratio": None}
    reward = row.get("policy_reward", row.get("true_reward"))
    ratio = row.get("policy_log_ratio")
    yield place, {"group": place, "text": _text(row["text"]), "reward": _number(reward), "log_ratio": _number(ratio)}


def _rows(run: Run, lines_of: LinesOf) -> Iterator[dict[str, Any]]:
    """Samples of the final policy: as evaluated, else as the last evaluation of training left them."""
    evaluated = [_as_text(row, "policy") for row in lines_of(run.folder / FOLDER / ORACLE_SAMPLES)]
    if any("broken" not in row for row in evaluated):
        yield from evaluated
        return
    logged = [_as_text(row, "sample") for row in lines_of(run.folder / SAMPLES)]
    steps = [row["step"] for row in logged if is_number(row.get("step"))]
    yield from (row for row in logged if "broken" in row or not steps or row.get("step") == max(steps))


def _as_text(row: Any, key: str) -> dict[str, Any]:
    """The row with its answer under ``text``; ``{broken}`` of one without prompt or answer."""
    fits = isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get(key), str)
    return {**row, "text": row[key]} if fits else {"broken": True}


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the JSON value of each line of a file, None of one that is none; nothing where the file cannot be read."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield None
    except OSError:
        yield None


def _text(value: object) -> str:
    """Text of several lines, without characters that a browser acts on in place of showing; the end of a long one is
    left out, and said to be.
    """
    text = str(value)
    cut = text[:_LONGEST] + (f" ... ({len(text) - _LONGEST:,} more characters)" if len(text) > _LONGEST else "")
    return "".join(c if c in _SHOWN_CONTROLS or unicodedata.category(c) not in _HIDDEN else "\ufffd" for c in cut)


def _number(value: Any) -> float | None:
    try:
        return plain_number(float(value)) if is_number(value) and math.isfinite(value) else None
    except OverflowError:
        return None
