"""Run one job of Hydra: record its status in its folder, report a failure without noise."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig

from caldpo.config.hydra_session import register_with_hydra
from caldpo.config.run_dir import write_hydra_dir
from caldpo.config.run_lock import is_held, run_lock
from caldpo.config.summary_file import SUMMARY, known_summary
from caldpo.errors import CaldpoError
from caldpo.security.paths import require_no_links_out
from caldpo.security.redacted_streams import redacted_output
from caldpo.security.secrets import redact_error, redact_file, redact_files, redact_text
from caldpo.utils.atomic_io import write_text
from caldpo.utils.process_rank import own_ranks, process_rank

ERROR = "error.txt"
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
DIED = "died"  # never written: the summary says running, and no process holds the run's lock
INCOMPLETE, UNREADABLE = "incomplete", "unreadable"  # likewise: there is no readable summary; a file cannot be read
DIED_REASON = "its process ended without a word: killed, out of memory, or the machine went down"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a full disk, a quota, one that is only read
# a scheduler's notice that time is up, and a terminal that is gone
_ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True)
class AlreadyDone:
    """A run that has finished already, with the value that its command returns."""

    value: Any


Task = Callable[[DictConfig], Any]
EarlyEnd = Callable[[object], None]  # takes the exit code of the command
early_ends: list[EarlyEnd] = []  # of the sweep under way: called where it ends early, which Hydra tells no callback
IsDone = Callable[[DictConfig, Path], AlreadyDone | None]

# Worker processes of parallel launchers import this module with the task, and name the run's folder later.
register_with_hydra()


def run_job(task: Task, records: bool, cfg: DictConfig, *, done: IsDone | None = None, reraise: bool = False) -> Any:
    """Run ``task(cfg)`` in the folder that Hydra made.

    With ``records`` this process holds the folder's lock, and the folder's ``summary.json`` has a ``status`` (running,
    finished, failed, interrupted), and after a failure an ``error``, and ``error.txt`` the traceback. In a sweep a
    failure is printed and the next run starts; an interruption ends the sweep.

    Args:
        task: what is run.
        records: whether the folder tells what became of it.
        cfg: the run's configuration.
        done: asked once the lock is held; where it answers, nothing is run and nothing recorded.
        reraise: raise an error in place of printing it.

    Returns:
        The result of the task; None when it failed in a sweep of the basic sweeper.

    Raises:
        SystemExit: with 1 when a single run failed, 130 after Ctrl-C, 128 + signal after SIGTERM, SIGUSR1 and SIGHUP.
    """
    for library in ("huggingface_hub", "datasets"):  # which have a handler of their own beside Hydra's
        logging.getLogger(library).propagate = False
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that its CPU build could download
    folder = Path(HydraConfig.get().runtime.output_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(exit_on_signals())  # also where a launcher's own process runs this, and not our command
        stack.enter_context(redacted_output(outlived=records))
        stack.enter_context(own_ranks(cfg, announce=True))
        if records:
            try:
                require_no_links_out(folder)  # before the lock, its owner's file and the record are written there
                stack.enter_context(run_lock(folder))
            except CaldpoError as refused:
                if reraise:
                    raise
                return _end_of_failure(refused, None)
        return _run(task, cfg, folder, _Record(folder if records else None), done, reraise)


def _run(
    task: Task, cfg: DictConfig, folder: Path, record: _Record, done: IsDone | None = None, reraise: bool = False
) -> Any:
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    name = f"run {hydra.job.num}: {folder.name}" if in_sweep else str(folder)
    try:
        if in_sweep:
            redact_file(Path(hydra.sweep.dir) / "multirun.yaml")
        if done is not None and (result := done(cfg, folder)) is not None:
            print(f"{name} {FINISHED} already", flush=True)
            return result.value
        if hydra.output_subdir is not None:  # the user has asked Hydra to write it
            redact_files(folder / hydra.output_subdir)
        elif record.folder is not None and process_rank() == 0:
            write_hydra_dir(cfg, folder)
        if in_sweep:
            print(name, flush=True)
        record.start()
        value = task(cfg)
        record.finished()
        return value
    except Exception as error:
        record.failed(error)
        if reraise:
            raise as_caldpo_error(error) or error from None
        return _end_of_failure(error, record.folder if record.started else None)
    except (KeyboardInterrupt, SystemExit) as stop:
        record.interrupted()
        if reraise and isinstance(stop, KeyboardInterrupt):
            raise
        raise SystemExit(_exit_code(stop)) from None


def _end_of_failure(error: Exception, recorded: Path | None) -> None:
    """Report a failure and end the run by it; ``recorded``: the folder that holds the traceback."""
    print_error(error, recorded)
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        raise SystemExit(1) from None
    if not str(hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
        raise error  # a sweeper that learns from values has to know that this one is none
    # the basic one would not start the remaining batches


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """End by SystemExit on SIGTERM, SIGUSR1 and SIGHUP, so that the run and the sweep are recorded as interrupted.

    A handler set by other code stays, but for one that lets SIGTERM pass by, as submitit's does.
    """

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _ENDING} if in_main_thread else {}
    replaced = [n for n, h in before.items() if h is signal.SIG_DFL or getattr(h, "__name__", "") == "bypass"]
    for number in replaced:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, before[number])


def status_of(folder: Path, written: str) -> str:
    """Tell the status of a run whose summary says ``written``: ``died`` where no process runs it any more."""
    return DIED if written == RUNNING and not is_held(folder) else written


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically; numbers that are not finite become null, which JSON can hold."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write_text(path, json.dumps(finite, indent=2) + "\n")


class _Record:
    """Record status and error in the run's folder, on the first rank."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rank = process_rank()
        self.started = False  # before that, what the folder tells is another run's

    def start(self) -> None:
        self.started = True
        if self.folder:
            self._error_file().unlink(missing_ok=True)
        self._write(RUNNING)

    def finished(self) -> None:
        self._write(FINISHED)

    def interrupted(self) -> None:
        if self.started:
            with self._or_note():
                self._write(INTERRUPTED)

    def failed(self, error: Exception) -> None:
        if not self.folder or not self.started:
            return
        with self._or_note():
            self._write(FAILED, error=describe_error(error))
        trace = redact_text("".join(traceback.format_exception(error)))
        try:
            write_text(self._error_file(), trace)
        except OSError as full:
            if as_caldpo_error(error) is None:
                print(
                    f"{trace.rstrip()}\nnote: {redact_text(str(full))}: the above is written nowhere", file=sys.stderr
                )
            self.folder = None  # there is nothing to point to

    @contextlib.contextmanager
    def _or_note(self) -> Iterator[None]:
        """Turn a failure to record into a note, so that it does not hide the run's own error."""
        try:
            yield
        except (OSError, CaldpoError) as full:
            print(f"note: {SUMMARY} cannot tell how the run ended: {redact_text(str(full))}", file=sys.stderr)

    def _error_file(self) -> Path:
        assert self.folder
        return self.folder / (f"error.rank{self.rank}.txt" if self.rank else ERROR)

    def _write(self, status: str, **error: str) -> None:
        if self.folder and not self.rank:
            summary = known_summary(self.folder)  # of one that a power cut has torn nothing can be kept
            if status == RUNNING:
                summary.pop("error", None)  # an earlier run's
            write_json(self.folder / SUMMARY, {**summary, "status": status, **error})


def describe_error(error: Exception) -> str:
    """Format type and message of an error on one line; only the message of a CaldpoError."""
    known = as_caldpo_error(error)
    text = redact_error(known) if known else redact_text(f"{type(error).__name__}: {error}")
    return " ".join(text.split())


def as_caldpo_error(error: BaseException) -> CaldpoError | None:
    """Find the CaldpoError that ``error`` is or was raised from while Hydra built a section, with its full key."""
    cause: BaseException | None = error
    while isinstance(cause, InstantiationException):
        section = str(cause).partition("full_key: ")[2].strip()
        cause = cause.__cause__
        if isinstance(cause, CaldpoError) and section and cause.key and "." not in cause.key:
            # The constructor knows its argument by name, the person by its place in the configuration.
            value = {} if cause.value_or_none is None else {"value": cause.value}
            return CaldpoError(cause.message, key=f"{section}.{cause.key}", remedy=cause.remedy, **value)
    if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
        return CaldpoError(
            f"cannot be written: {cause.strerror}",
            key=str(cause.filename or "disk"),
            remedy="make room there; resume a run that was begun: python -m caldpo.train resume=FOLDER",
        )
    return cause if isinstance(cause, CaldpoError) else None


def print_error(error: Exception, folder: Path | None = None) -> None:
    """Print an error without secrets: a CaldpoError as it is, others as a traceback; and ``folder`` that holds it."""
    known = as_caldpo_error(error)
    trace = "".join(traceback.format_exception(error)).rstrip()
    print(f"error: {redact_error(known)}" if known else redact_text(trace), file=sys.stderr)
    if folder:
        print(f"  Details: {folder / ERROR}", file=sys.stderr)


def _exit_code(stop: BaseException) -> int:
    if isinstance(stop, KeyboardInterrupt):
        return 130
    # Lightning ends a run on SIGTERM by a SystemExit with code 0, which a scheduler would take for success.
    if any(base.__name__ == "SIGTERMException" for base in type(stop).__mro__):
        return 143
    code = getattr(stop, "code", None)
    return code if isinstance(code, int) else int(code is not None)
