"""``logger=tensorboard``: TensorBoard's event files in the run's folder, by Lightning's own logger."""

from __future__ import annotations

import html
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from caldpo.config.extras import require_package
from caldpo.loggers.tracker_base import Rows, Tracker, finite, not_reached, send_earlier
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.file_names import from_here

FOLDER = "tensorboard"  # in the run's folder; TensorBoard names a run by its folder


class TensorBoard(Tracker):
    """Event files in ``tensorboard/`` of the run's folder: scalars, the table of samples, and hyperparameters.

    ``tensorboard --logdir SWEEP`` shows all runs of a sweep.
    """

    def __init__(self) -> None:
        self._logger: TensorBoardRows | None = None
        self._config: dict[str, Any] = {}
        self._shown: Path | None = None

    def check(self) -> None:
        require_package("tensorboard", "logger", "tensorboard")

    def open(
        self, run_dir: Path, name: str, group: str | None, config: dict[str, Any], earlier: Rows | None = None
    ) -> list[Logger]:
        if not is_first_rank():
            return []
        if earlier is not None and (run_dir / FOLDER).is_dir():
            shutil.rmtree(run_dir / FOLDER)  # what it held is in metrics.csv, and rows that were cut off are not
        self._config, self._shown = config, run_dir if group is None else run_dir.parent
        self._logger = TensorBoardRows(run_dir, name.removesuffix(run_dir.name).strip())
        send_earlier(self._logger, earlier)
        return [self._logger]

    def close(self, *, failed: bool = False) -> None:
        if self._logger is not None:
            self._logger.finalize("failed" if failed else "success")

    @property
    def view(self) -> str | None:
        return None if self._shown is None else f"tensorboard --logdir {shlex.quote(str(from_here(self._shown)))}"

    def summarize(self, values: Mapping[str, float]) -> None:
        if self._logger is not None:  # with the values, as TensorBoard's table of hyperparameters needs them
            self._logger.log_hyperparams(self._config, finite(values), step=int(values.get("run/steps", 0)))

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None:
        folders = {path.parent for path in (run_dir / FOLDER).rglob("events.out.tfevents.*")}
        inside = all(folder.resolve().is_relative_to(run_dir.resolve()) for folder in folders)  # no link leads out
        if not folders or not inside or not values or not is_first_rank():
            return None
        try:
            self.check()
            folder = min(folders)
            logger = TensorBoardRows(run_dir, "" if folder.name == FOLDER else folder.name)
            logger.log_metrics(finite(values))
            logger.finalize("success")
        except Exception as error:  # the disk, or a package that is gone
            return not_reached("TensorBoard", error)
        return None


class TensorBoardRows(TensorBoardLogger):
    """Lightning's logger of one run, whose ``label`` says what its folder's name does not; with tables, as text."""

    def __init__(self, run_dir: Path, label: str) -> None:
        super().__init__(run_dir, name=FOLDER, version=label, default_hp_metric=False)

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        lines = [columns, ["---"] * len(columns), *data]
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        self.experiment.add_text(key, text, step)

    def save(self) -> None:
        """Write what is pending; Lightning's would write the hyperparameters, which ``config.yaml`` has."""
        self.experiment.flush()


def _cell(value: Any) -> str:
    """Write a value as a cell of a Markdown table: one line, without markup of its own."""
    return html.escape(" ".join(str(value).split())).replace("|", "&#124;")
