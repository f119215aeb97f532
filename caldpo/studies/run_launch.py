"""Start the runs of a study by Hydra's launchers, as those of a sweep, and watch their records."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.callbacks import Callbacks  # what Hydra's own entry makes; no public name
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from caldpo.config.hydra_session import hydra_session
from caldpo.config.overrides import quoted
from caldpo.config.run_dir import NOT_BY_HYDRA
from caldpo.errors import CaldpoError
from caldpo.studies.run_store import FOLDERS, RunStore
from caldpo.studies.study_job import run_and_record
from caldpo.studies.study_plan import StudyRun

_LOOK = 0.5  # seconds between two looks at the records
_LINE = 60.0  # seconds between two lines where there is no terminal


class RunLauncher:
    """Runs what has no record yet. ``launcher`` is Hydra's section of that name, as the command composed it."""

    def __init__(self, store: RunStore, launcher: DictConfig, workers: int, keep_runs: bool) -> None:
        self.store, self.launcher, self.keep_runs = store, launcher.copy(), keep_runs
        if "n_jobs" in self.launcher:
            with read_write(self.launcher):
                self.launcher.n_jobs = workers

    def run(self, runs: Sequence[StudyRun], label: str) -> None:
        """Run those without a record, and wait for them.

        Raises:
            CaldpoError: some have failed, other than by values that were not finite.
        """
        missing = self.store.missing(runs)
        if not missing:
            return
        with watched(self.store, missing, label):
            self._launch(missing)
        if failed := self.store.missing(missing):
            first = self.store.failure(failed[0]).strip().partition("\n\n")[0]
            raise CaldpoError(
                f"{len(failed)} of {len(missing)} runs have failed, the first ({failed[0].digest}) with\n  {first}",
                key=label,
                remedy=f"see {self.store.folder}/failures; the same command tries them again",
            )

    def _launch(self, runs: Sequence[StudyRun]) -> None:
        before = Singleton.get_state()
        try:
            with hydra_session("train") as session:
                place = f"hydra.sweep.dir={quoted(str(self.store.folder / FOLDERS))}"
                overrides = [place, NOT_BY_HYDRA, "hydra.job.name=train", "hydra/job_logging=none"]
                cfg = session.compose([*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
                with read_write(cfg), open_dict(cfg):
                    cfg.hydra.launcher = OmegaConf.create(OmegaConf.to_container(self.launcher, resolve=False))
                launcher: Any = Plugins.instance().instantiate_launcher(
                    hydra_context=HydraContext(config_loader=session.loader, callbacks=Callbacks()),
                    task_function=functools.partial(run_and_record, self.keep_runs),
                    config=cfg,
                )
                # quoted: a digest such as 12e4 is read as a number
                launcher.launch([[*run.overrides, f"hydra.sweep.subdir={quoted(run.digest)}"] for run in runs], 0)
        finally:
            Singleton.set_state(before)


@contextlib.contextmanager
def watched(store: RunStore, runs: Sequence[StudyRun], label: str) -> Iterator[None]:
    """Show how many of the runs have ended and how long the others will take: a bar, or a line a minute in a log."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(store, runs, label, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(store: RunStore, runs: Sequence[StudyRun], label: str, ended: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.__stderr__)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    started = said = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=len(runs))
        while True:
            over = ended.wait(_LOOK)
            done = len(runs) - len(store.missing(runs))
            bar.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and (over or now - said > _LINE):
                left = (now - started) / done * (len(runs) - done) if done else float("nan")
                rest = f", about {left / 60:.0f} min left" if done and not over else ""
                console.print(f"{label}: {done} of {len(runs)} runs{rest}", highlight=False)
                said = now
            if over:
                return
