"""``logger=trackio``: a run of Hugging Face's Trackio, in its local database or on a Space.

Lightning has no logger of its own for it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from caldpo.config.extras import require_package
from caldpo.config.signatures import validated
from caldpo.loggers.tracker_base import (
    Rows,
    Tracker,
    beginning,
    finite,
    name_of_run,
    not_reached,
    read_run_id,
    send_earlier,
    write_run_id,
)
from caldpo.utils.collectives import is_first_rank

_OPTION = "trackio"


class Trackio(Tracker):
    """A run of Trackio; the runs of a sweep are one of its groups.

    Without ``space_id``, or Trackio's own variable ``TRACKIO_SPACE_ID``, it is in the database of this machine
    (``TRACKIO_DIR``). ``conf/logger/trackio.yaml`` explains each key.
    """

    @validated
    def __init__(self, project: str = "caldpo", name: str | None = None, space_id: str | None = None) -> None:
        self.project, self.name = project, name
        self.space_id = space_id or os.environ.get("TRACKIO_SPACE_ID")
        self._logger: TrackioRows | None = None
        self._opened = False

    def check(self) -> None:
        require_package("trackio", "logger", _OPTION)

    def open(
        self, run_dir: Path, name: str, group: str | None, config: dict[str, Any], earlier: Rows | None = None
    ) -> list[Logger]:
        if not is_first_rank():
            return []
        with beginning("Trackio", _OPTION):
            import trackio

            if earlier is not None:
                self._delete_replaced(run_dir)
            with self._quiet():
                run = trackio.init(
                    project=self.project,
                    name=name_of_run(self.name, name, group),
                    group=group,
                    space_id=self.space_id,
                    config=config,
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
            self._logger, self._opened = TrackioRows(run), True
            write_run_id(run_dir, _OPTION, str(run.id))
            send_earlier(self._logger, earlier)
        return [self._logger]

    def close(self, *, failed: bool = False) -> None:
        if self._logger is not None:
            import trackio

            with self._quiet():
                trackio.finish()
            self._logger = None

    @property
    def view(self) -> str | None:
        local = self._opened and self.space_id is None
        return f"trackio show --project {shlex.quote(self.project)}" if local else None

    def summarize(self, values: Mapping[str, float]) -> None:
        if self._logger is not None:
            self._logger.log_metrics(finite(values), int(values.get("run/steps", 0)))

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None:
        run_id = read_run_id(run_dir, _OPTION)
        if run_id is None or not values or not is_first_rank():
            return None
        if self.space_id is not None:
            return "Trackio: the run is on a Space, to which no later figures are added"
        try:
            self.check()
            import trackio

            # by its id, which trackio.init does not take: runs of several sweeps may have one name
            known = next(run for run in trackio.Api().runs(self.project) if run.id == run_id)
            before = known.config or {}  # is written again, without the entries that are Trackio's own
            kept: dict[str, Any] = {
                "group": before.get("_Group"),
                "config": {key: value for key, value in before.items() if not key.startswith("_")},
            }
            with self._quiet():
                run = trackio.Run(None, self.project, None, name=known.name, run_id=run_id, **kept)
                run.log(finite(values))
                run.finish()
        except (Exception, StopIteration) as error:  # disk, a run that was deleted, or a package that is gone
            return not_reached("Trackio", error)
        return None

    def _delete_replaced(self, run_dir: Path) -> None:
        """Delete the run of an earlier start, whose rows the new one repeats; those of a Space stay."""
        import trackio

        run_id = read_run_id(run_dir, _OPTION)
        with contextlib.suppress(ValueError):  # there is no such project any more
            for run in trackio.Api().runs(self.project) if run_id is not None and self.space_id is None else ():
                if run.id == run_id:
                    run.delete()

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Leave out what Trackio prints of its local database; ``view`` is printed at the end."""
        with contextlib.redirect_stdout(io.StringIO()) if self.space_id is None else contextlib.nullcontext():
            yield


class TrackioRows(Logger):
    """Lightning's interface to a run of Trackio; with tables."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        return str(self._run.name)

    @property
    def version(self) -> str:
        return str(self._run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run began with them."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        import pandas
        import trackio

        self._run.log({key: trackio.Table(dataframe=pandas.DataFrame(data, columns=columns))}, step=step)
