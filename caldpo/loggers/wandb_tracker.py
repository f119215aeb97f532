"""``logger=wandb``: Weights & Biases, by Lightning's own logger; online, or offline in the run's folder."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, WandbLogger

from caldpo.config.run_lifecycle import describe_error
from caldpo.config.signatures import validated
from caldpo.config.summary_file import known_summary
from caldpo.errors import CaldpoError
from caldpo.loggers.tracker_base import Rows, Tracker, finite, name_of_run, not_reached, run_totals, send_earlier
from caldpo.loggers.wandb_account import account_configured, switched_off
from caldpo.loggers.wandb_stretches import last_logged, latest_stretch, set_aside
from caldpo.metrics_file import NAME
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.file_names import from_here

ROW = "row"  # name in W&B of a row's number, counted from 1


class WandB(Tracker):
    """``logger=wandb``: a W&B run; without an account it is offline, and nothing is asked.

    What is None is taken from W&B's own variable (``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_NAME``,
    ``WANDB_RUN_GROUP``, ``WANDB_MODE``) where that is set; so are the run's ``tags`` and ``notes`` where it has none
    (``WANDB_TAGS``, ``WANDB_NOTES``). ``conf/logger/wandb.yaml`` explains each key.
    """

    @validated
    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    ) -> None:
        self.project, self.entity, self.name, self.group = project, entity, name, group
        self.mode = mode
        self._folder: Path | None = None
        self.url: str | None = None  # of the run's page, once it is open and online

    def open(
        self, run_dir: Path, name: str, group: str | None, config: dict[str, Any], earlier: Rows | None = None
    ) -> list[Logger]:
        # Of a resumed run W&B has each row once: online it is sent those that did not reach it, offline a new stretch
        # takes the place of the old one.
        if not is_first_rank() or self.mode == "disabled" or (self.mode == "auto" and switched_off()):
            return []
        online = os.environ.get("WANDB_MODE") == "online" or account_configured()
        offline = self.mode == "offline" or (self.mode == "auto" and not online)
        before = None if earlier is None else latest_stretch(run_dir)
        same: dict[str, Any] = {}
        # online before and offline now: what the server has is not known, so that all is sent to a run of its own
        if before is not None and (before[1] or not offline):
            same = {"id": before[0]} if offline else {"id": before[0], "resume": "allow"}
        if offline:
            set_aside(run_dir / "wandb")
        labels = {
            "name": name_of_run(self.name or os.environ.get("WANDB_NAME"), name, group),
            "group": self.group or os.environ.get("WANDB_RUN_GROUP") or group,
            "tags": config.get("tags") or [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag] or None,
            "notes": config.get("notes") or os.environ.get("WANDB_NOTES"),
        }
        if group is not None and not same:
            same = {"id": secrets.token_hex(4)}  # one in WANDB_RUN_ID would make one W&B run of all runs of a sweep
        try:
            run = self._init(run_dir, offline=offline, job_type="train", config=config, **labels, **same)
        except OSError:  # of the disk; it speaks for itself
            raise
        except Exception as error:  # of its settings, its variables, the account or its server
            raise _refusal(error) from error
        self._folder = Path(run.dir).parent if offline else None
        self.url = None if offline else run.url
        # Lightning logs the optimiser step under this name: make it the axis of every curve.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        run.define_metric(ROW, hidden=True)
        logger = WandbRows(run, sent=int(run.summary.get(ROW) or 0) if "resume" in same else 0)
        send_earlier(logger, earlier)
        return [logger]

    def close(self, *, failed: bool = False) -> None:
        if (run := _open_run()) is not None:
            run.finish(exit_code=int(failed))

    def summarize(self, values: Mapping[str, float]) -> None:
        if (run := _open_run()) is not None:
            run.summary.update(finite(values))

    @property
    def upload(self) -> str | None:
        return None if self._folder is None else f"wandb sync {from_here(self._folder)}"

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None:
        """Add all finite ``values`` to the summary of the W&B run that a training left in its folder.

        They are a second stretch of the run, online or offline as the first, and W&B may take the later summary in
        place of the earlier one. So the last logged value of every metric, from ``metrics.csv``, goes in again.
        """
        stretch = None if switched_off() else latest_stretch(run_dir)
        if stretch is None or not values or not is_first_rank():
            return None
        run_id, offline = stretch
        try:
            if not offline and not account_configured():
                raise CaldpoError("its run is online, and no API key is configured here", remedy="wandb login")
            figures = {**last_logged(run_dir / NAME), **run_totals(known_summary(run_dir)), **values}
            run = self._init(run_dir, offline=offline, id=run_id, resume="allow")
            try:
                run.summary.update(finite(figures))
            finally:
                run.finish()
        except Exception as error:  # network, account, disk, or a service that does not start
            return not_reached("W&B", error)
        return f"upload to W&B: wandb sync {from_here(run_dir / 'wandb')}" if offline else None

    def _init(self, run_dir: Path, *, offline: bool, **arguments: Any) -> Any:
        import wandb

        return wandb.init(
            dir=run_dir.absolute(),  # W&B's service, once started, keeps the current folder of its start
            project=self.project or os.environ.get("WANDB_PROJECT") or "caldpo",
            entity=self.entity or os.environ.get("WANDB_ENTITY"),
            mode="offline" if offline else "online",
            reinit="finish_previous",
            # neither the command line nor the environment nor the terminal's text leaves with the run
            settings=wandb.Settings(
                console="off",
                silent=offline,
                x_disable_meta=True,
                x_disable_machine_info=True,
                disable_code=True,
                disable_git=True,
            ),
            **arguments,
        )


def _open_run() -> Any:
    wandb = sys.modules.get("wandb")  # not imported for this: where nothing has, no run is open
    return None if wandb is None else wandb.run


def _refusal(error: Exception) -> CaldpoError:
    """Explain on one line why W&B starts no run."""
    from pydantic import ValidationError  # W&B's own check of its settings

    details = error.errors() if isinstance(error, ValidationError) else []
    problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details]
    return CaldpoError(
        f"W&B does not begin its run ({'; '.join(problems) or describe_error(error)})",
        key="logger",
        value="wandb",
        remedy="mend the key of logger.wandb or the WANDB_ variable, log in (wandb login), or take"
        " logger.wandb.mode=offline or logger=csv",
    )


class WandbRows(WandbLogger):
    """Lightning's logger of a W&B run that has the first ``sent`` rows of metrics already: a resumed run's."""

    def __init__(self, run: Any, sent: int) -> None:
        super().__init__(experiment=run)
        self._sent, self._row = sent, 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if is_first_rank():
            self._row += 1
            if self._row > self._sent:
                super().log_metrics({**metrics, ROW: self._row}, step)
