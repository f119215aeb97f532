"""Report the end of a sweep: the outcome of each run, as a table and ``sweep.json``, from the runs' files."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from caldpo.config.find_runs import holds_no_training, natural
from caldpo.config.run_lifecycle import (
    DIED,
    DIED_REASON,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    describe_error,
    early_ends,
    status_of,
    write_json,
)
from caldpo.config.run_lock import is_held
from caldpo.config.summary_file import SUMMARY, read_summary
from caldpo.config.sweep_jobs import count_runs
from caldpo.errors import CaldpoError

REPORT = "sweep.json"
JOBS = ".submitit"  # what submitit keeps of its jobs, in the sweep's folder
_LOOK_AGAIN = 0.2  # seconds
_DYING = 3.0  # seconds that workers have to end, which were stopped with the sweep
_NO_END = {RUNNING: "still running", DIED: DIED_REASON}


@dataclass(frozen=True)
class RunOutcome:
    """A run's folder (relative to the sweep's), its status and, when it did not finish, why, on one line."""

    name: str
    status: str
    error: str | None


@dataclass(frozen=True)
class UnderWay:
    """A sweep of this process."""

    folder: Path
    planned: int | None = None  # number of its runs, where it is known beforehand
    jobs_here: bool = False  # its runs are jobs of submitit's on this machine, which continue without this process
    jobs_elsewhere: bool = False  # the same of a cluster's


class SweepReport(Callback):
    """Hydra callback that reports a sweep and ends the command with code 1 when any run failed."""

    def __init__(self) -> None:
        self.under_way: UnderWay | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print where the runs are going to lie."""
        launcher = str(OmegaConf.select(config, "hydra.launcher._target_"))
        here, elsewhere = (launcher.endswith(f"submitit_launcher.{name}Launcher") for name in ("Local", "Slurm"))
        sweep = UnderWay(Path(config.hydra.sweep.dir), planned_runs(config), here, elsewhere)
        if here or elsewhere:
            with contextlib.suppress(OSError):  # its jobs hold the configuration as it was typed
                (sweep.folder / JOBS).mkdir(mode=0o700, parents=True, exist_ok=True)
                (sweep.folder / JOBS).chmod(0o700)  # one that was there already, too
        self.under_way = sweep
        early_ends[:] = [functools.partial(report_interrupted, sweep)]
        print(f"sweep in {sweep.folder}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report, and exit with code 1 when any run failed."""
        early_ends.clear()
        outcomes = report(self.under_way or UnderWay(Path(config.hydra.sweep.dir)))
        if any(run.status != FINISHED for run in outcomes):
            raise SystemExit(1)


def report_interrupted(sweep: UnderWay, code: object = None) -> None:
    """Report a sweep that ended early; nothing where it has no folder yet.

    What this process or its workers were running is interrupted. A launcher that lost a run (``code`` 1) gives up on
    the others as well: those that go on by themselves are waited for, so that the report has their outcome.
    """
    if not sweep.folder.is_dir():
        return
    lost = code == 1
    if lost:
        _wait_for_others(sweep)
    elif not sweep.jobs_here and not sweep.jobs_elsewhere:
        _wait_for_others(sweep, at_most=_DYING)
    for path in sorted(sweep.folder.rglob(SUMMARY)):
        with contextlib.suppress(OSError, CaldpoError):  # torn: reported as such
            summary = read_summary(path.parent)
            if summary.get("status") == RUNNING and not lost and not is_held(path.parent):
                write_json(path, summary | {"status": INTERRUPTED})
    report(sweep)


def report(sweep: UnderWay) -> list[RunOutcome]:
    """Write ``sweep.json``, print the table of the runs, and clear away what ended jobs left.

    Of the planned runs, those without a folder were not started.
    """
    outcomes = collect(sweep.folder)
    missing = 0 if sweep.planned is None else max(0, sweep.planned - len(outcomes))
    content = {"folder": str(sweep.folder), "runs": [asdict(run) for run in outcomes], "not_started": missing}
    try:
        write_json(sweep.folder / REPORT, content)
    except OSError as error:  # a full disk: the runs' own files are what counts
        print(f"note: {REPORT} cannot be written: {error}")
    _print(sweep.folder, outcomes, missing)
    _clear_jobs(sweep)
    return outcomes


def collect(folder: Path) -> list[RunOutcome]:
    """Read the runs under ``folder`` in the order of their names (seed=2 before seed=10), from their own files."""
    runs = sorted({path.parent for path in folder.rglob(SUMMARY)}, key=lambda run: natural(str(run)))
    return [_outcome(folder, run) for run in runs]


def planned_runs(config: DictConfig) -> int | None:
    """Count the runs of a sweep; None where its sweeper decides as it goes."""
    hydra = GlobalHydra.instance()
    return count_runs(hydra.config_loader() if hydra.is_initialized() else None, config)


def _outcome(folder: Path, run: Path) -> RunOutcome:
    try:
        summary = read_summary(run)
    except CaldpoError as error:
        summary = {"status": FAILED, "error": f"{SUMMARY} {error.message}"}
    status = status_of(run, str(summary.get("status", FINISHED)))
    reason = summary.get("error") or _NO_END.get(status)
    return RunOutcome(str(run.relative_to(folder)), status, None if reason is None else str(reason))


def _wait_for_others(sweep: UnderWay, at_most: float | None = None) -> None:
    """Wait until no run of the sweep is written any more, and none of its jobs on this machine runs."""
    waited_from = time.monotonic()
    announced = at_most is not None
    while any(map(_goes_on, _jobs(sweep))) or any(is_held(path.parent) for path in sweep.folder.rglob(SUMMARY)):
        if at_most is not None and time.monotonic() - waited_from > at_most:
            return
        if not announced:
            print(
                "a run was lost; waiting for those that continue by themselves (Ctrl-C does not stop them)", flush=True
            )
            announced = True
        time.sleep(_LOOK_AGAIN)


def _jobs(sweep: UnderWay) -> list[Path]:
    """The folders of jobs on this machine, each named by the number of its process."""
    return [job for job in (sweep.folder / JOBS).glob("*") if job.name.isdigit()] if sweep.jobs_here else []


def _goes_on(job: Path) -> bool:
    try:
        return os.waitid(os.P_PID, int(job.name), os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except (OSError, OverflowError):  # waited for already, or of an earlier command in the same folder
        return False


def _clear_jobs(sweep: UnderWay) -> None:
    """Remove the pickles of jobs that have ended: the one kind of file in a sweep that runs code when it is opened."""
    ended = [job for job in _jobs(sweep) if not _goes_on(job)]
    if sweep.jobs_elsewhere:
        ended = [result.parent for result in (sweep.folder / JOBS).glob("*/*_result.pkl")]
    for pickle in (pickle for job in ended for pickle in job.glob("*.pkl")):
        pickle.unlink(missing_ok=True)


def _print(folder: Path, outcomes: Sequence[RunOutcome], missing: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("error", overflow="fold")
    styles = {FINISHED: "green", FAILED: "bold red", DIED: "bold red", INTERRUPTED: "yellow", RUNNING: "yellow"}
    for run in outcomes:
        error = textwrap.shorten(run.error or "", 200, placeholder=" ...")  # all of it is in the run's folder
        table.add_row(Text(run.name), Text(run.status, styles.get(run.status, "")), Text(error))
    console.print(table)
    finished = sum(run.status == FINISHED for run in outcomes)
    left = f"; {missing} not started" if missing else ""
    print(f"{finished} of {len(outcomes) + missing} runs finished{left}; all lie in {folder}")
    if any(run.status == FINISHED and not holds_no_training(folder / run.name) for run in outcomes):
        _write_page(folder)
        print(f"compare them: python -m caldpo.compare {shlex.quote(str(folder))}")


def _write_page(folder: Path) -> None:
    """Write ``report.html`` into the sweep's folder; a sweep whose page cannot be written has not failed."""
    from caldpo.report.comparison import write_sweep_page

    try:
        page = write_sweep_page(folder)
    except Exception as error:  # of whatever is in the runs' files, or a full disk
        print(f"note: the page of the sweep cannot be written: {describe_error(error)}")
        return
    if page is not None:
        print(f"look at them: {page}")
