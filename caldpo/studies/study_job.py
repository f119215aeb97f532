"""One run of a study, in whatever process a launcher starts it: train, measure, and record it in one piece.

A run's name is the digest of its overrides. A process that finds its record has nothing to do; one that finds another
at work on it, such as one that outlived a killed command, waits for that one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.config.run_lifecycle import exit_on_signals, write_json
from caldpo.security.redacted_streams import RedactedStream
from caldpo.security.secrets import redact_text
from caldpo.studies.run_store import DIVERGED, FAILURES, FINISHED, LOCKS, RECORDS
from caldpo.utils.atomic_io import write_text
from caldpo.utils.folder_cache import locked

OUTPUT = "output.txt"


def run_and_record(keep: bool, cfg: DictConfig) -> None:
    """Run ``cfg`` unless its record is there; ``keep`` its folder. A failure is written down, never raised."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    store, digest = folder.parents[1], folder.name
    record, failure = store / RECORDS / f"{digest}.json", store / FAILURES / f"{digest}.txt"
    with exit_on_signals(), locked(store / LOCKS, digest, key="output"):
        if record.exists():
            return
        failure.unlink(missing_ok=True)
        _clear(folder)
        try:
            write_json(record, _run(cfg, folder))
        except Exception as error:
            write_text(failure, redact_text(f"{error}\n\n{''.join(traceback.format_exception(error))}"))
        else:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def _run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    # torch and transformers are imported before the clock starts: one process runs many
    from caldpo.studies.run_measures import MEASURES
    from caldpo.training_command import run
    from caldpo.utils.finite_checks import NonFiniteError
    from caldpo.utils.versions import versions

    wall, cpu = time.perf_counter(), time.process_time()
    measures: dict[str, Any] = {}
    status, error = FINISHED, None
    with _silenced(folder):
        try:
            run(cfg)
            measures = json.loads((folder / MEASURES).read_text(encoding="utf-8"))
        except NonFiniteError as met:
            status, error = DIVERGED, met.message
    return {
        "status": status,
        "overrides": list(HydraConfig.get().overrides.task),
        "error": error,
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "versions": versions(),
        **measures,
    }


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt has left: a run starts in an empty folder."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextlib.contextmanager
def _silenced(folder: Path) -> Iterator[None]:
    """Let all that a run prints go into its folder."""
    level = logging.root.level
    with (folder / OUTPUT).open("w", encoding="utf-8") as file:
        stream: Any = RedactedStream(file)
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            logging.disable(logging.WARNING)  # handlers hold the streams of the process
            try:
                yield
            finally:
                logging.disable(logging.NOTSET)
                logging.root.setLevel(level)
                sys.stdout.flush()
