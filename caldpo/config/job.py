"""One run inside Hydra: its failure is recorded in its folder, and told to a person without noise."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig

from caldpo.config.names import register_resolvers
from caldpo.config.redact import redact_file, redact_files, redact_text
from caldpo.errors import CaldpoError

SUMMARY = "summary.json"
ERROR = "error.txt"
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"

Task = Callable[[DictConfig], Any]

# Worker processes of parallel launchers import this module with the task, and name the run's folder later.
register_resolvers()


def run_job(task: Task, records: bool, cfg: DictConfig) -> Any:
    """Run ``task(cfg)`` in the folder that Hydra made.

    With ``records`` the folder's ``summary.json`` has a ``status`` (running, finished, failed, interrupted),
    and after a failure an ``error``, and ``error.txt`` the traceback. In a sweep a failure is printed and the
    next run starts; an interruption ends the sweep.

    Returns:
        What the task returns; None when it failed in a sweep of the basic sweeper.

    Raises:
        SystemExit: with 1 when a single run failed, 130 after Ctrl-C, 143 after SIGTERM.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    in_sweep = hydra.mode == RunMode.MULTIRUN
    if hydra.output_subdir is not None:
        redact_files(folder / hydra.output_subdir)
    if in_sweep:
        redact_file(Path(hydra.sweep.dir) / "multirun.yaml")
    if in_sweep:
        print(f"run {hydra.job.num}: {folder.name}", flush=True)
    record = _Record(folder if records else None)
    record.start()
    try:
        value = task(cfg)
    except Exception as error:
        record.failed(error)
        _tell(error, folder if records else None)
        if not in_sweep:
            raise SystemExit(1) from None
        if str(hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
            return None  # it would not start the remaining batches
        raise  # a sweeper that learns from values has to know that this one is none
    except (KeyboardInterrupt, SystemExit) as stop:
        record.interrupted()
        raise SystemExit(_exit_code(stop)) from None
    record.finished()
    return value


def read_summary(folder: Path) -> dict[str, Any]:
    """The ``summary.json`` of a run's folder, empty when there is none."""
    path = folder / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write atomically: a reader, or a crash half way, never sees half a file.

    Numbers that are not finite become null, which JSON can hold.
    """
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


class _Record:
    """Keeps status and error in the run's folder; with several processes only the first one writes them."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rank = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)

    def start(self) -> None:
        if self.folder:
            self._error_file().unlink(missing_ok=True)
        self._merge({"status": RUNNING, "error": None})

    def finished(self) -> None:
        self._merge({"status": FINISHED})

    def interrupted(self) -> None:
        self._merge({"status": INTERRUPTED})

    def failed(self, error: Exception) -> None:
        if self.folder:
            trace = "".join(traceback.format_exception(error))
            self._error_file().write_text(redact_text(trace), encoding="utf-8")
        self._merge({"status": FAILED, "error": one_line(error)})

    def _error_file(self) -> Path:
        assert self.folder
        return self.folder / (f"error.rank{self.rank}.txt" if self.rank else ERROR)

    def _merge(self, news: dict[str, Any]) -> None:
        if self.folder and not self.rank:
            merged = read_summary(self.folder) | news
            write_json(self.folder / SUMMARY, {k: v for k, v in merged.items() if k != "error" or v is not None})


def one_line(error: Exception) -> str:
    """Type and message of an error on one line; the message alone when it is meant for a person."""
    known = as_caldpo_error(error)
    text = str(known) if known else f"{type(error).__name__}: {error}"
    return redact_text(" ".join(text.split()))


def as_caldpo_error(error: BaseException) -> CaldpoError | None:
    """The CaldpoError that ``error`` is or was raised from while Hydra built a section, with its full key."""
    cause: BaseException | None = error
    while isinstance(cause, InstantiationException):
        section = str(cause).partition("full_key: ")[2].strip()
        cause = cause.__cause__
        if isinstance(cause, CaldpoError) and section and cause.key and "." not in cause.key:
            # The constructor knows its argument by name, the person by its place in the configuration.
            shown = {} if cause.value_or_none is None else {"value": cause.value}
            return CaldpoError(cause.message, key=f"{section}.{cause.key}", remedy=cause.remedy, **shown)
    return cause if isinstance(cause, CaldpoError) else None


def _tell(error: Exception, folder: Path | None) -> None:
    known = as_caldpo_error(error)
    text = str(known) if known else "".join(traceback.format_exception(error)).rstrip()
    print(redact_text(f"error: {text}" if known else text), file=sys.stderr)
    if folder:
        print(f"  The whole story: {folder / ERROR}", file=sys.stderr)


def _exit_code(stop: BaseException) -> int:
    if isinstance(stop, KeyboardInterrupt):
        return 130
    # Lightning ends a run on SIGTERM by a SystemExit with code 0, which a scheduler would take for success.
    if any(base.__name__ == "SIGTERMException" for base in type(stop).__mro__):
        return 143
    code = getattr(stop, "code", None)
    return code if isinstance(code, int) else int(code is not None)
