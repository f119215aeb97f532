"""Asking many questions at a time, and stopping at once where the endpoint gives out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.endpoint import KEY, Endpoint, Refused, Unusable
from caldpo.evaluation.judge.pair_comparison import Question
from caldpo.evaluation.judge.verdict_cache import Ledger
from caldpo.utils.delayed_progress import DelayedProgress

_REFUSALS = 3  # in a row from the start, until the fault is taken to be in all questions


@dataclass
class Round:
    """What one command asked.

    Args:
        calls: answers that came.
        retries: attempts that failed before them.
        refused: why, by the digest of the question; these are not saved, and are asked again by the next command.
    """

    calls: int = 0
    retries: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def ask_all(questions: Mapping[str, Question], endpoint: Endpoint, ledger: Ledger, concurrency: int) -> Round:
    """Ask what the ledger does not hold, and write every answer into it as it comes.

    The first question is asked alone: a wrong key, model or address is found by one call. Once the endpoint gives out,
    no further question is sent; those on their way are waited for and saved.

    Args:
        questions: by their digest.
        endpoint: answers them.
        ledger: holds what was asked before.
        concurrency: questions on their way at a time.

    Raises:
        CaldpoError: the endpoint gave out; says how many verdicts are saved.
    """
    missing = [(digest, question) for digest, question in questions.items() if digest not in ledger]
    with DelayedProgress("judge", len(missing)) as bar:
        work = _Work(endpoint, ledger, bar, answered=len(missing) < len(questions))
        if missing:
            work.ask(*missing[0])
        with ThreadPoolExecutor(concurrency, thread_name_prefix="judge") as pool:
            try:
                for done in as_completed([pool.submit(work.ask, *entry) for entry in missing[1:]]):
                    done.result()
            finally:
                work.over.set()  # after Ctrl-C the pool would go through everything that waits
    if work.failure is not None:
        raise _gave_out(work.failure, questions, ledger, endpoint)
    return work.round


class _Work:
    """What the threads share."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger, bar: DelayedProgress, *, answered: bool) -> None:
        self.endpoint, self.ledger, self.bar, self.answered = endpoint, ledger, bar, answered
        self.round = Round()
        self.failure: Unusable | None = None
        self.over = threading.Event()
        self._lock = threading.Lock()

    def ask(self, digest: str, question: Question) -> None:
        """Ask one question, unless the endpoint gave out."""
        if self.over.is_set():
            return
        try:
            answer = self.endpoint.ask(question)
        except Unusable as error:
            self._stop(error)
        except Refused as error:
            self._refuse(digest, error)
        else:
            self.ledger.add(digest, self.endpoint.judge, question, answer)
            with self._lock:
                self.answered = True
                self.round.calls += 1
                self.round.retries += answer.retries
                self.bar.advance(1)

    def _stop(self, error: Unusable) -> None:
        with self._lock:
            self.failure = self.failure or error
            self.over.set()

    def _refuse(self, digest: str, error: Refused) -> None:
        with self._lock:
            self.round.refused[digest] = error.reason
            self.bar.advance(1)
            hopeless = not self.answered and len(self.round.refused) >= _REFUSALS
        if hopeless:
            self._stop(Unusable(f"it refuses one question after another: {error.reason}", error.remedy))


def _gave_out(failure: Unusable, questions: Mapping[str, Question], ledger: Ledger, endpoint: Endpoint) -> CaldpoError:
    saved = sum(digest in ledger for digest in questions)
    return CaldpoError(
        f"the judge gives no more verdicts ({failure.reason}); {saved} of {len(questions)} verdicts are saved in"
        f" {ledger.path}",
        key=KEY,
        value=endpoint.judge.base_url,
        remedy=f"{failure.remedy}; then run the same command again, which asks only for those that are missing",
    )
