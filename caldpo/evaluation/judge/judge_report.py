"""What a judged evaluation says of itself: before the calls, after them, and in the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from caldpo.evaluation.judge.pair_comparison import JudgeModel, Pair, Question
from caldpo.evaluation.judge.verdict_cache import Ledger
from caldpo.evaluation.judge.win_rates import Judged

if TYPE_CHECKING:
    from caldpo.evaluation.judge.judge_pairs import Outcome

_FEW = 0.05  # share of pairs below which one side of a regression carries little


def announce(who: JudgeModel, pairs: Sequence[Pair], questions: Mapping[str, Question], ledger: Ledger) -> None:
    """How much is about to be asked."""
    missing = [question for digest, question in questions.items() if digest not in ledger]
    saved, same = len(questions) - len(missing), sum(pair.identical for pair in pairs)
    letters = sum(len(question.text) for question in missing)
    parts = [
        f"{len(missing):,} calls to {who.model} at {who.base_url}",
        f"{letters:,} characters to read",
        f"{len(pairs):,} pairs in both orders",
    ]
    parts += [f"{saved:,} verdicts saved already"] if saved else []
    parts += [f"{same:,} pairs of equal texts need none"] if same else []
    _say(f"  judge: {'; '.join(parts)}")


def say_spent(outcome: Outcome) -> None:
    """What the calls of this command took."""
    now = outcome.now
    cost = "no prices, no cost" if now.cost is None else f"cost {now.cost:.4f} ({outcome.total.cost:.4f} in all)"
    tokens = f"{now.prompt_tokens:,} tokens read, {now.completion_tokens:,} written"
    _say(f"  judge: {outcome.spent.calls:,} answers, {outcome.spent.retries:,} retries, {tokens}, {cost}")


def counts(outcome: Outcome) -> dict[str, Any]:
    """The details that are about pairs, calls, tokens and money."""
    verdicts = _verdicts(outcome)
    return {
        "pairs": len(outcome.judged),
        "identical": sum(not entry.verdicts for entry in outcome.judged),
        "scored": sum(entry.score is not None for entry in outcome.judged),
        "without_verdict": verdicts.count(None),
        "refused": len(outcome.spent.refused),
        "calls": outcome.spent.calls,
        "retries": outcome.spent.retries,
        "usage": asdict(outcome.total),
        "usage_of_this_command": asdict(outcome.now),
    }


def notes(outcome: Outcome, ledger: Ledger) -> list[str]:
    """What a reader has to know before believing the rates."""
    found, verdicts, refused = [], _verdicts(outcome), outcome.spent.refused
    if lost := verdicts.count(None):
        pairs = sum(entry.score is None for entry in outcome.judged)
        found.append(
            f"{lost} of {len(verdicts)} answers of the judge give no verdict (unreadable, or refused):"
            f" the {pairs} pairs they are about are left out of the rates"
        )
    if refused:
        found.append(f"the endpoint refused {len(refused)} questions, one of them: {next(iter(refused.values()))}")
    if ledger.damaged:
        found.append(f"{ledger.damaged} damaged lines of {ledger.path.name} were skipped, their questions asked anew")
    if outcome.total.uncounted:
        found.append(
            f"the endpoint did not count the tokens of {outcome.total.uncounted} answers: cost is a lower bound"
        )
    return found + _extrapolation([entry for entry in outcome.judged if entry.score is not None])


def _extrapolation(scored: Sequence[Judged]) -> list[str]:
    signs = np.sign([entry.pair.length_difference for entry in scored])
    for word, sign in (("longer", 1), ("shorter", -1)):
        others = float((signs != sign).mean()) if len(signs) else 1.0
        if others < _FEW:
            return [
                f"the policy's response is {word} on {1 - others:.0%} of the prompts: the length-controlled rate"
                " extrapolates to lengths that hardly occur"
            ]
    return []


def _verdicts(outcome: Outcome) -> list[str | None]:
    return [verdict for entry in outcome.judged for _, verdict in entry.verdicts]


def _say(line: str) -> None:
    Console().print(Text(line), soft_wrap=True)
