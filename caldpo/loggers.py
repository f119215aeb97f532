"""Where metrics go: metrics.csv always, Weights & Biases when chosen."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from caldpo.config.signature import validated
from caldpo.ranks import is_first_rank


def csv_logger(run_dir: Path) -> CSVLogger:
    """``metrics.csv`` in the run's folder, on disk after every row."""
    return CSVLogger(run_dir, name="", version="", flush_logs_every_n_steps=1)


class NoTracker:
    """``logger=csv`` and ``logger=none``: metrics.csv alone."""

    def open(self, run_dir: Path, name: str, group: str | None, config: dict[str, Any]) -> list[Logger]:
        return []

    def close(self) -> str | None:
        return None


class WandB:
    """``logger=wandb``: a W&B run; without an account it stays offline and asks nothing.

    Args:
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        group: of the run; None takes the sweep's folder, so that the runs of a sweep are one group.
        mode: ``auto`` is online when an API key is configured, else offline.
    """

    @validated
    def __init__(
        self,
        project: str = "caldpo",
        entity: str | None = None,
        group: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
    ) -> None:
        self.project, self.entity, self.group, self.mode = project, entity, group, mode
        self._folder: Path | None = None

    def open(self, run_dir: Path, name: str, group: str | None, config: dict[str, Any]) -> list[Logger]:
        """Start the W&B run, on the first rank alone. ``config`` has to be free of secrets."""
        if not is_first_rank():
            return []
        import wandb

        offline = self.mode == "offline" or (self.mode == "auto" and not account_configured())
        run = wandb.init(
            dir=run_dir,
            name=name,
            project=self.project,
            entity=self.entity,
            group=self.group or group,
            job_type="train",
            mode="offline" if offline else "online",
            config=config,
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
        )
        self._folder = Path(run.dir).parent if offline else None
        # Lightning logs the optimiser step under this name: make it the axis of every curve.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return [WandbLogger(experiment=run)]

    def close(self) -> str | None:
        """Finish the W&B run, whatever happened; the command that uploads it if it is offline."""
        import wandb

        if wandb.run is not None:
            wandb.finish()
        if self._folder is None:
            return None
        try:
            return f"wandb sync {self._folder.relative_to(Path.cwd())}"
        except ValueError:
            return f"wandb sync {self._folder}"


def account_configured() -> bool:
    """Whether W&B can go online without asking: a key in the environment or in netrc, and not told otherwise."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
