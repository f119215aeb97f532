"""Putting the questions about many pairs, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from string import Template

from caldpo.evaluation.judge.cost import Prices, Usage, usage_of
from caldpo.evaluation.judge.endpoint import Endpoint
from caldpo.evaluation.judge.judge_report import announce
from caldpo.evaluation.judge.pair_comparison import JudgeModel, Pair, Question, both_orders
from caldpo.evaluation.judge.parse_verdict import Verdict, read_verdict
from caldpo.evaluation.judge.query import Round, ask_all
from caldpo.evaluation.judge.verdict_cache import Ledger
from caldpo.evaluation.judge.win_rates import Judged

# opens the endpoint for these questions
Opens = Callable[[Mapping[str, Question]], AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class Outcome:
    """All pairs with their verdicts.

    Args:
        judged: every pair.
        spent: what this command asked.
        now: tokens of that.
        total: tokens of all answers used, those of earlier commands too.
    """

    judged: Sequence[Judged]
    spent: Round
    now: Usage
    total: Usage


def judge_pairs(
    pairs: Sequence[Pair],
    template: Template,
    who: JudgeModel,
    ledger: Ledger,
    opens: Opens,
    *,
    concurrency: int,
    prices: Prices,
) -> Outcome:
    """Ask about every pair in both orders what the ledger does not hold.

    Raises:
        CaldpoError: the endpoint gave out.
    """
    orders = [() if pair.identical else both_orders(pair, template) for pair in pairs]
    questions = {question.digest(who): question for both in orders for question in both}
    before = {digest for digest in questions if digest in ledger}
    announce(who, pairs, questions, ledger)
    with opens(questions) as endpoint:
        spent = ask_all(questions, endpoint, ledger, concurrency)
    answers = {digest: ledger[digest] for digest in questions if digest in ledger}
    judged = [
        Judged(place, pair, tuple((question, _verdict(ledger, question.digest(who))) for question in both))
        for place, (pair, both) in enumerate(zip(pairs, orders, strict=True))
    ]
    now = usage_of([answer for digest, answer in answers.items() if digest not in before], prices)
    return Outcome(judged, spent, now, usage_of(list(answers.values()), prices))


def _verdict(ledger: Ledger, digest: str) -> Verdict | None:
    answer = ledger.get(digest)
    return None if answer is None else read_verdict(answer.answer)
