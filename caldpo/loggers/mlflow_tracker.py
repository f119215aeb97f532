"""``logger=mlflow``: an MLflow run, by Lightning's own logger; in a database of this folder, or on a server."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from pytorch_lightning.loggers import Logger, MLFlowLogger

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
from caldpo.security.secrets import redact_text
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.file_names import from_here

_OPTION = "mlflow"
_LOCAL = "mlflow.db"  # database that MLflow takes by default, in the current folder
_MOST_TEXT = 5000  # characters of a tag that every store takes


class MLflow(Tracker):
    """An MLflow run: parameters, metrics, tags, and the table of samples as an artifact.

    What is None is taken from MLflow's own variable (``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``) where that is
    set. The runs of a sweep share the tag ``sweep``. ``conf/logger/mlflow.yaml`` explains each key.
    """

    @validated
    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None, name: str | None = None) -> None:
        self.tracking_uri, self.experiment, self.name = tracking_uri, experiment, name
        self._logger: MLflowRows | None = None

    def check(self) -> None:
        require_package("mlflow", "logger", _OPTION)

    @property
    def uri(self) -> str:
        """Address of the store."""
        # absolute: MLflow remembers where the database of an address was when the process first named it
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(_LOCAL).absolute()}"

    def open(
        self, run_dir: Path, name: str, group: str | None, config: dict[str, Any], earlier: Rows | None = None
    ) -> list[Logger]:
        if not is_first_rank():
            return []
        tags = {
            "caldpo.folder": str(from_here(run_dir.absolute())),
            "mlflow.source.name": "caldpo",  # in place of the path of the script
            **({"sweep": group} if group else {}),
            **({"tags": ", ".join(config["tags"])} if config.get("tags") else {}),
            **({"mlflow.note.content": str(config["notes"])[:_MOST_TEXT]} if config.get("notes") else {}),
        }
        with beginning("MLflow", _OPTION):
            logger = self._logger_of(run_name=name_of_run(self.name, name, group), tags=tags)
            with _one_at_a_time(self.uri):  # of the runs of a sweep, one makes database and experiment
                run_id = str(logger.run_id)
            logger.log_hyperparams(config)
            if earlier is not None:
                self._delete_replaced(run_dir, logger)
            send_earlier(logger, earlier)
        write_run_id(run_dir, _OPTION, run_id)
        self._logger = logger
        return [logger]

    def close(self, *, failed: bool = False) -> None:
        if self._logger is not None:
            self._logger.end("FAILED" if failed else "FINISHED")
            self._logger = None

    @property
    def view(self) -> str | None:
        if urlsplit(self.uri).scheme in ("http", "https", "databricks"):
            return None
        return f"mlflow ui --backend-store-uri {shlex.quote(redact_text(self.uri).replace(f'{Path.cwd()}/', ''))}"

    def summarize(self, values: Mapping[str, float]) -> None:
        if self._logger is not None:
            self._logger.log_metrics(finite(values), int(values.get("run/steps", 0)))

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None:
        run_id = read_run_id(run_dir, _OPTION)
        if run_id is None or not values or not is_first_rank():
            return None
        # the run's files may come from other hands: where to, and with which account, only this machine says
        named = os.environ.get("MLFLOW_TRACKING_URI")
        if self.tracking_uri not in (None, named) or not (named or Path(_LOCAL).is_file()):
            store = redact_text(self.tracking_uri or f"sqlite:///{_LOCAL}")
            return f"MLflow was not told: set MLFLOW_TRACKING_URI to the store of the run ({store})"
        try:
            self.check()
            self._logger_of(run_id=run_id).log_metrics(finite(values))
        except Exception as error:  # network, account, disk, or a package that is gone
            return not_reached("MLflow", error)
        return None

    def _logger_of(self, **arguments: Any) -> MLflowRows:
        experiment = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "caldpo"
        return MLflowRows(experiment_name=experiment, tracking_uri=self.uri, **arguments)

    def _delete_replaced(self, run_dir: Path, logger: MLflowRows) -> None:
        """Delete the MLflow run of an earlier start, whose rows the new one repeats; MLflow can restore it."""
        if (run_id := read_run_id(run_dir, _OPTION)) is not None:
            logger.experiment.delete_run(run_id)


class MLflowRows(MLFlowLogger):
    """Lightning's logger of one run, which ends where the run does, not at each end of a loop; with tables."""

    def finalize(self, status: str = "success") -> None:
        """Do nothing: Lightning calls it after each evaluation, too."""

    def end(self, status: str) -> None:
        """Tell MLflow that the run is over; ``status`` as MLflow writes it."""
        self.experiment.set_terminated(str(self.run_id), status)

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        table = {"columns": columns, "data": data}  # MLflow's own form of a table, of which it makes a data frame
        self.experiment.log_dict(str(self.run_id), table, f"{key}.json")


def _one_at_a_time(uri: str) -> AbstractContextManager[Any]:
    """Make the lock of a local database; any other store looks after itself."""
    scheme, _, path = uri.partition("sqlite:///")
    return FileLock(f"{path}.lock") if not scheme and path else nullcontext()
