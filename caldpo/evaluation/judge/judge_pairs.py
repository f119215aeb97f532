"""Send the questions about all pairs to a judge, several at a time, and count answers, tokens and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from string import Template
from typing import Any

import numpy as np

from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.endpoint import URL_KEY, EndpointError, JudgeError, QuestionRefusedError
from caldpo.evaluation.judge.pair_comparison import JudgedPair, Pair, Question, Verdict, both_orders, read_verdict
from caldpo.evaluation.judge.verdict_cache import Answer, Usage, VerdictCache
from caldpo.utils.delayed_progress import DelayedProgress

_MAX_REFUSALS = 3  # before the first answer, until every question is taken to be refused
_RARE = 0.05  # share of pairs below which a regression on length extrapolates

Ask = Callable[[Question], Answer]  # raises a JudgeError where there is no answer


@dataclass(frozen=True)
class Judgement:
    """All pairs with their verdicts, and what they took."""

    pairs: Sequence[JudgedPair]
    refused: Mapping[str, str]  # reason by digest; these questions are not saved, and the next command asks again
    retries: int  # failed attempts before this command's answers
    usage: Usage  # of this command's answers
    total_usage: Usage  # of all answers in use, those of earlier commands too

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
            "refused": len(self.refused),
            "calls": self.usage.answers,
            "retries": self.retries,
            "usage": asdict(self.total_usage),
            "usage_of_this_command": asdict(self.usage),
        }

    def notes(self, cache: VerdictCache) -> list[str]:
        """Return the caveats of the win rates."""
        notes, verdicts = [], self.verdicts
        if missing := verdicts.count(None):
            pairs = sum(entry.score is None for entry in self.pairs)
            notes.append(
                f"{missing} of {len(verdicts)} answers of the judge have no verdict (unreadable, or refused):"
                f" their {pairs} pairs are left out of the rates"
            )
        if self.refused:
            reason = next(iter(self.refused.values()))
            notes.append(f"the endpoint refused {len(self.refused)} questions, one of them: {reason}")
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
    cache: VerdictCache,
    ask: Ask,
    *,
    concurrency: int,
    prices: tuple[float, float] | None,
) -> Judgement:
    """Ask about every pair in both orders, but for cached questions, and print calls and cost.

    Args:
        pairs: with the policy's responses.
        template: of a question.
        cache: of earlier answers, and for the new ones.
        ask: sends a question to the judge.
        concurrency: largest number of questions in flight.
        prices: per million tokens read and written.

    Raises:
        CaldpoError: the endpoint stopped answering.
    """
    orders = [() if pair.identical else both_orders(pair, template) for pair in pairs]
    questions = {question.digest(cache.judge): question for both in orders for question in both}
    missing = {digest: question for digest, question in questions.items() if digest not in cache.answers}
    _print_plan(cache, pairs, missing, cached=len(questions) - len(missing))
    refused = _ask_all(missing, ask, cache, concurrency, total=len(questions))
    answers = {digest: cache.answers[digest] for digest in questions if digest in cache.answers}
    new = [answer for digest, answer in answers.items() if digest in missing]

    def verdict(question: Question) -> Verdict | None:
        answer = answers.get(question.digest(cache.judge))
        return None if answer is None else read_verdict(answer.answer)

    judgement = Judgement(
        pairs=[
            JudgedPair(index, pair, tuple((question, verdict(question)) for question in both))
            for index, (pair, both) in enumerate(zip(pairs, orders, strict=True))
        ],
        refused=refused,
        retries=sum(answer.retries for answer in new),
        usage=Usage.of(new, prices),
        total_usage=Usage.of(list(answers.values()), prices),
    )
    _print_usage(judgement)
    return judgement


def _ask_all(
    missing: Mapping[str, Question], ask: Ask, cache: VerdictCache, concurrency: int, *, total: int
) -> Mapping[str, str]:
    """Ask every question, cache each answer at once, and return the reason of each refused one.

    The first question is asked alone, so that a wrong key, model or address costs one call. Once the endpoint fails, no
    further question is sent; answers in flight are awaited and saved.
    """
    waiting = iter(missing.items())
    in_flight: dict[Future[None], str] = {}
    refused: dict[str, str] = {}
    failure: JudgeError | None = None
    slots, answered = 1, len(missing) < total

    def ask_and_save(digest: str, question: Question) -> None:
        cache.add(digest, question, ask(question))  # by the thread itself, so that an interrupt loses no answer

    with DelayedProgress("judge", len(missing)) as bar, ThreadPoolExecutor(concurrency) as pool:
        while True:
            for digest, question in islice(waiting, max(0, slots - len(in_flight))):
                in_flight[pool.submit(ask_and_save, digest, question)] = digest
            if not in_flight:
                break
            for done in wait(in_flight, return_when=FIRST_COMPLETED).done:
                digest = in_flight.pop(done)
                try:
                    done.result()
                    answered = True
                except QuestionRefusedError as error:
                    refused[digest] = error.reason
                    if not answered and len(refused) >= _MAX_REFUSALS:
                        failure = EndpointError(f"it refuses every question: {error.reason}", error.remedy)
                except EndpointError as error:
                    failure = failure or error
                bar.advance(1)
            slots = concurrency if failure is None else 0
    if failure is None:
        return refused
    saved = total - sum(digest not in cache.answers for digest in missing)
    raise CaldpoError(
        f"the judge stopped answering ({failure.reason}); {saved} of {total} verdicts are saved in {cache.path}",
        key=URL_KEY,
        value=cache.judge.base_url,
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


def _print_plan(cache: VerdictCache, pairs: Sequence[Pair], missing: Mapping[str, Question], *, cached: int) -> None:
    identical = sum(pair.identical for pair in pairs)
    parts = [
        f"{len(missing):,} calls to {cache.judge.model} at {cache.judge.base_url}",
        f"{sum(len(question.text) for question in missing.values()):,} characters to read",
        f"{len(pairs):,} pairs in both orders",
    ]
    parts += [f"{cached:,} verdicts cached"] if cached else []
    parts += [f"{identical:,} pairs of identical responses need none"] if identical else []
    print(f"  judge: {'; '.join(parts)}")


def _print_usage(judgement: Judgement) -> None:
    usage = judgement.usage
    cost = "cost unknown (no prices)"
    if usage.cost is not None:
        cost = f"cost {usage.cost:.4f} ({judgement.total_usage.cost:.4f} in all)"
    tokens = f"{usage.prompt_tokens:,} tokens read, {usage.completion_tokens:,} written"
    print(f"  judge: {usage.answers:,} answers, {judgement.retries:,} retries, {tokens}, {cost}")
