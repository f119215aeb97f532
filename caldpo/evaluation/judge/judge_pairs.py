"""Send the questions about all pairs to a judge, several at a time, and count answers, tokens and cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from string import Template
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.endpoint import URL_KEY, Endpoint, EndpointError, QuestionRefusedError
from caldpo.evaluation.judge.pair_comparison import (
    JudgedPair,
    JudgeModel,
    Pair,
    Question,
    Verdict,
    both_orders,
    read_verdict,
)
from caldpo.evaluation.judge.verdict_cache import Prices, Usage, VerdictCache
from caldpo.utils.delayed_progress import DelayedProgress

_MAX_REFUSALS = 3  # before the first answer, until every question is taken to be refused
_RARE = 0.05  # share of pairs below which a regression on length extrapolates

# opens the endpoint for these questions
OpenEndpoint = Callable[[Mapping[str, Question]], AbstractContextManager[Endpoint]]


@dataclass
class QueryCounts:
    """Counts of one command.

    Args:
        calls: answers received.
        retries: failed attempts before them.
        refused: reason by the digest of each refused question; these are not saved, and the next command asks again.
    """

    calls: int = 0
    retries: int = 0
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """All pairs with their verdicts, and what they took.

    Args:
        pairs: every pair.
        counts: of this command.
        usage: of this command's answers.
        total_usage: of all answers in use, those of earlier commands too.
    """

    pairs: Sequence[JudgedPair]
    counts: QueryCounts
    usage: Usage
    total_usage: Usage

    @property
    def verdicts(self) -> list[Verdict | None]:
        """Every verdict, None for an unreadable or missing one."""
        return [verdict for entry in self.pairs for _, verdict in entry.verdicts]

    def details(self) -> dict[str, Any]:
        """Return counts of pairs, calls, tokens and cost, for the results' file."""
        return {
            "pairs": len(self.pairs),
            "identical": sum(not entry.verdicts for entry in self.pairs),
            "scored": sum(entry.score is not None for entry in self.pairs),
            "without_verdict": self.verdicts.count(None),
            "refused": len(self.counts.refused),
            "calls": self.counts.calls,
            "retries": self.counts.retries,
            "usage": asdict(self.total_usage),
            "usage_of_this_command": asdict(self.usage),
        }

    def notes(self, cache: VerdictCache) -> list[str]:
        """Return the caveats of the win rates."""
        notes, verdicts, refused = [], self.verdicts, self.counts.refused
        if missing := verdicts.count(None):
            pairs = sum(entry.score is None for entry in self.pairs)
            notes.append(
                f"{missing} of {len(verdicts)} answers of the judge have no verdict (unreadable, or refused):"
                f" their {pairs} pairs are left out of the rates"
            )
        if refused:
            notes.append(f"the endpoint refused {len(refused)} questions, one of them: {next(iter(refused.values()))}")
        if cache.damaged:
            notes.append(f"{cache.damaged} damaged lines of {cache.path.name} were skipped, their verdicts renewed")
        if self.total_usage.uncounted:
            notes.append(
                f"the endpoint did not count the tokens of {self.total_usage.uncounted} answers: cost is a lower bound"
            )
        return notes + _length_notes([entry for entry in self.pairs if entry.score is not None])


def judge_pairs(
    pairs: Sequence[Pair],
    template: Template,
    judge: JudgeModel,
    cache: VerdictCache,
    open_endpoint: OpenEndpoint,
    *,
    concurrency: int,
    prices: Prices,
) -> Judgement:
    """Ask about every pair in both orders, but for cached questions, and print calls and cost.

    Raises:
        CaldpoError: the endpoint stopped answering.
    """
    orders = [() if pair.identical else both_orders(pair, template) for pair in pairs]
    questions = {question.digest(judge): question for both in orders for question in both}
    cached = {digest for digest in questions if digest in cache}
    _print_plan(judge, pairs, questions, cached)
    with open_endpoint(questions) as endpoint:
        counts = ask_all(questions, endpoint, cache, concurrency)
    answers = {digest: cache[digest] for digest in questions if digest in cache}

    def verdict(question: Question) -> Verdict | None:
        answer = cache.get(question.digest(judge))
        return None if answer is None else read_verdict(answer.answer)

    judgement = Judgement(
        pairs=[
            JudgedPair(index, pair, tuple((question, verdict(question)) for question in both))
            for index, (pair, both) in enumerate(zip(pairs, orders, strict=True))
        ],
        counts=counts,
        usage=Usage.of([answer for digest, answer in answers.items() if digest not in cached], prices),
        total_usage=Usage.of(list(answers.values()), prices),
    )
    _print_usage(judgement)
    return judgement


def ask_all(
    questions: Mapping[str, Question], endpoint: Endpoint, cache: VerdictCache, concurrency: int
) -> QueryCounts:
    """Ask every question that is not cached, and cache each answer at once.

    The first question is asked alone, so that a wrong key, model or address costs one call. Once the endpoint fails, no
    further question is sent; answers in flight are awaited and saved.

    Args:
        questions: by their digest.
        endpoint: of the judge.
        cache: of earlier answers; receives the new ones.
        concurrency: largest number of questions in flight.

    Raises:
        CaldpoError: the endpoint stopped answering; says how many verdicts are saved.
    """
    missing = [(digest, question) for digest, question in questions.items() if digest not in cache]
    with DelayedProgress("judge", len(missing)) as bar:
        query = _Query(endpoint, cache, bar, answered=len(missing) < len(questions))
        if missing:
            query.ask(*missing[0])
        with ThreadPoolExecutor(concurrency, thread_name_prefix="judge") as pool:
            try:
                for done in as_completed([pool.submit(query.ask, *entry) for entry in missing[1:]]):
                    done.result()
            finally:
                query.stopped.set()  # else the pool would send every waiting question after Ctrl-C
    if query.failure is not None:
        raise _stopped_error(query.failure, questions, cache, endpoint)
    return query.counts


class _Query:
    """State that the threads of one query share."""

    def __init__(self, endpoint: Endpoint, cache: VerdictCache, bar: DelayedProgress, *, answered: bool) -> None:
        self.endpoint, self.cache, self.bar, self.answered = endpoint, cache, bar, answered
        self.counts = QueryCounts()
        self.failure: EndpointError | None = None
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def ask(self, digest: str, question: Question) -> None:
        """Ask one question, unless the endpoint has failed."""
        if self.stopped.is_set():
            return
        try:
            answer = self.endpoint.ask(question)
        except EndpointError as error:
            self._stop(error)
        except QuestionRefusedError as error:
            self._refuse(digest, error)
        else:
            self.cache.add(digest, self.endpoint.judge, question, answer)
            with self._lock:
                self.answered = True
                self.counts.calls += 1
                self.counts.retries += answer.retries
                self.bar.advance(1)

    def _stop(self, error: EndpointError) -> None:
        with self._lock:
            self.failure = self.failure or error
            self.stopped.set()

    def _refuse(self, digest: str, error: QuestionRefusedError) -> None:
        with self._lock:
            self.counts.refused[digest] = error.reason
            self.bar.advance(1)
            hopeless = not self.answered and len(self.counts.refused) >= _MAX_REFUSALS
        if hopeless:
            self._stop(EndpointError(f"it refuses every question: {error.reason}", error.remedy))


def _stopped_error(
    failure: EndpointError, questions: Mapping[str, Question], cache: VerdictCache, endpoint: Endpoint
) -> CaldpoError:
    saved = sum(digest in cache for digest in questions)
    return CaldpoError(
        f"the judge stopped answering ({failure.reason}); {saved} of {len(questions)} verdicts are saved in"
        f" {cache.path}",
        key=URL_KEY,
        value=endpoint.judge.base_url,
        remedy=f"{failure.remedy}; then run the same command again, which asks only for missing verdicts",
    )


def _length_notes(scored: Sequence[JudgedPair]) -> list[str]:
    signs = np.sign([entry.pair.length_difference for entry in scored])
    for word, sign in (("longer", 1), ("shorter", -1)):
        others = float((signs != sign).mean()) if len(signs) else 1.0
        if others < _RARE:
            return [
                f"the policy's response is {word} on {1 - others:.0%} of the prompts: the length-controlled rate"
                " extrapolates to lengths that hardly occur"
            ]
    return []


def _print_plan(judge: JudgeModel, pairs: Sequence[Pair], questions: Mapping[str, Question], cached: set[str]) -> None:
    missing = [question for digest, question in questions.items() if digest not in cached]
    identical = sum(pair.identical for pair in pairs)
    parts = [
        f"{len(missing):,} calls to {judge.model} at {judge.base_url}",
        f"{sum(len(question.text) for question in missing):,} characters to read",
        f"{len(pairs):,} pairs in both orders",
    ]
    parts += [f"{len(cached):,} verdicts cached"] if cached else []
    parts += [f"{identical:,} pairs of identical responses need none"] if identical else []
    _print(f"  judge: {'; '.join(parts)}")


def _print_usage(judgement: Judgement) -> None:
    usage, counts = judgement.usage, judgement.counts
    cost = "cost unknown (no prices)"
    if usage.cost is not None:
        cost = f"cost {usage.cost:.4f} ({judgement.total_usage.cost:.4f} in all)"
    tokens = f"{usage.prompt_tokens:,} tokens read, {usage.completion_tokens:,} written"
    _print(f"  judge: {counts.calls:,} answers, {counts.retries:,} retries, {tokens}, {cost}")


def _print(line: str) -> None:
    Console().print(Text(line), soft_wrap=True)
