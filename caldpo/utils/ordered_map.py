"""Apply a function to many items in order, in processes of its own where that pays. No heavy imports."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from caldpo.errors import CaldpoError

Item = TypeVar("Item")
Result = TypeVar("Result")

INLINE = 8  # items that are done in this process, before others are worth their start
MOST_WORKERS = 8  # more than this process can hand items to


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order.

    From the ninth item on, workers forked from this process do the work, one for each processor that is not taken by
    another rank. The function may be any closure; items and results have to be picklable. It must not depend on
    earlier items, nor use torch or a thread of this process. At most one item for each worker is in memory.

    Raises:
        Exception: the first error of the function or of ``items``, in the order of the items.
        CaldpoError: a worker was killed.
    """
    rest = iter(items)
    for item in islice(rest, INLINE):
        yield function(item)
    count = workers_at_once()
    if count < 2:
        yield from map(function, rest)
        return
    workers: list[_Worker] = []
    try:
        try:
            workers.extend(_Worker(function) for _ in range(count))
        except OSError:  # a limit on processes or memory
            count = len(workers)
        if not workers:
            yield from map(function, rest)
            return
        busy: deque[_Worker] = deque()
        error: Exception | None = None
        while True:
            try:
                item = next(rest)
            except StopIteration:
                break
            except Exception as caught:  # after the results of the items before it
                error = caught
                break
            if len(busy) < count:
                worker = workers[len(busy)]
                worker.give(item)
                busy.append(worker)
                continue
            worker = busy.popleft()
            result = worker.result()
            worker.give(item)  # before the result is used, which takes time
            busy.append(worker)
            yield result
        for worker in busy:
            yield worker.result()
        if error is not None:
            raise error
    finally:
        for worker in workers:
            worker.end()


def workers_at_once() -> int:
    """Return how many workers this process may have: its share of the processors; 0 where it cannot fork."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 0
    name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in os.environ else "WORLD_SIZE"  # the latter by Lightning
    ranks = os.environ.get(name, "")
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) // (int(ranks) if ranks.isdigit() and int(ranks) else 1))


class _Worker:
    """A forked process that applies the function to one item at a time; it ends with this process."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function, self._kept = function, list[Any]()
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, other, self.connection), daemon=True)
        self._process.start()
        other.close()

    def give(self, item: Any) -> None:
        """Send an item; one that is nested too deeply to be sent is done here, when its turn comes."""
        try:
            self.connection.send(item)
        except RecursionError:
            self._kept = [item]
        except ConnectionError as lost:
            raise _killed() from lost

    def result(self) -> Any:
        if self._kept:
            return self._function(self._kept.pop())
        try:
            value, error = self.connection.recv()
        except (EOFError, ConnectionError) as lost:
            raise _killed() from lost
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """End it at once; by SIGKILL, since this process' handler of SIGTERM is its own until it replaces it."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def _killed() -> CaldpoError:
    return CaldpoError(
        "a process that prepares the data was killed, most likely for want of memory",
        remedy="free memory, let the run have fewer processors (taskset), or set data.streaming=true",
    )


def _serve(function: Callable[[Any], Any], connection: Connection, other: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole process group: this process' parent ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    other.close()
    gc.freeze()  # what was there before is never looked through again, nor copied
    with suppress(EOFError, ConnectionError):
        while True:
            item = connection.recv()
            try:
                answer: tuple[Any, Exception | None] = (function(item), None)
            except Exception as error:
                answer = (None, _sendable(error))
            connection.send(answer)


def _sendable(error: Exception) -> Exception:
    """Return the error, or one with its text where it cannot be rebuilt in another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
