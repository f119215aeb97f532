"""Log metrics to ``metrics.csv`` always, and to Weights & Biases when chosen."""

from __future__ import annotations

import math
import netrc
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlparse

from pytorch_lightning.loggers import Logger, WandbLogger

from caldpo.config.run_lifecycle import describe_error
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.metrics_file import NAME, STEP, RowWriter, iter_rows
from caldpo.utils.collectives import is_first_rank

Rows = Iterable[Mapping[str, str]]  # of metrics.csv, as text
ROW = "row"  # name in W&B of a row's number, counted from 1
REPLACED = "replaced"  # folder of offline stretches that a later one repeats
# a folder in which W&B keeps one stretch of a run; the id in its name may have a number after it, the file's has none
_STRETCH = re.compile(r"(?P<offline>offline-)?run-(?P<time>\d{8}_\d{6})-.+")


class MetricsFile(Logger):
    """Append rows to ``metrics.csv`` of the run's folder, each on disk at once; the first rank writes."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._writer = RowWriter(run_dir / NAME) if is_first_rank() else None

    name = version = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._writer is not None:
            self._writer.write(metrics, 0 if step is None else step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` has them."""


@runtime_checkable
class TableLogger(Protocol):
    """A Lightning logger that takes tables, as W&B's does."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None: ...


class Tracker(Protocol):
    """What ``logger=`` chooses: a tracker besides ``metrics.csv``; see :class:`WandB`."""

    url: str | None  # of the run's page, once it is open and online

    def open(
        self, run_dir: Path, name: str, group: str | None, config: dict[str, Any], earlier: Rows | None = None
    ) -> list[Logger]: ...

    def close(self) -> None: ...

    @property
    def upload(self) -> str | None: ...

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None: ...


class NoTracker:
    """``logger=csv`` and ``logger=none``: metrics.csv only."""

    url: str | None = None
    upload: str | None = None

    def open(
        self, run_dir: Path, name: str, group: str | None, config: dict[str, Any], earlier: Rows | None = None
    ) -> list[Logger]:
        return []

    def close(self) -> None: ...

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None:
        return None


class WandB:
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
        """Start the W&B run, or resume it, on the first rank.

        Args:
            run_dir: the run's folder.
            name, group: of the W&B run, where nothing else names them; no group outside a sweep.
            config: of the run, without secrets; its ``tags`` and ``notes`` are those of the W&B run.
            earlier: the rows that a resumed run has kept; None of a new one. W&B then has each row once: online it is
                sent those that did not reach it, offline a new stretch takes the place of the old one.

        Raises:
            CaldpoError: W&B refuses a setting, a variable or the account.
        """
        if not is_first_rank() or self.mode == "disabled" or (self.mode == "auto" and _switched_off()):
            return []
        online = os.environ.get("WANDB_MODE") == "online" or account_configured()
        offline = self.mode == "offline" or (self.mode == "auto" and not online)
        before = None if earlier is None else _latest_stretch(run_dir)
        same: dict[str, Any] = {}
        # online before and offline now: what the server has is not known, so that all is sent to a run of its own
        if before is not None and (before[1] or not offline):
            same = {"id": before[0]} if offline else {"id": before[0], "resume": "allow"}
        if offline:
            _set_aside(run_dir / "wandb")
        own_name = self.name or os.environ.get("WANDB_NAME")
        if own_name and group is not None:
            own_name = f"{own_name}: {name}"  # distinguishes the runs of a sweep
        labels = {
            "name": own_name or name,
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
        for row in earlier or ():
            values = {key: float(text) for key, text in row.items() if text}
            logger.log_metrics({key: value for key, value in values.items() if key != STEP}, int(values[STEP]))
        return [logger]

    def close(self) -> None:
        """Finish the W&B run, if any is open."""
        wandb = sys.modules.get("wandb")  # not imported for this: where nothing has, no run is open
        if wandb is not None and wandb.run is not None:
            wandb.finish()

    @property
    def upload(self) -> str | None:
        """The command that uploads an offline run, once it was opened; None of an online one."""
        return None if self._folder is None else f"wandb sync {_from_here(self._folder)}"

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None:
        """Add all finite ``values`` to the summary of the W&B run that a training left in its folder.

        They are a second stretch of the run, online or offline as the first, and W&B may take the later summary in
        place of the earlier one. So the last logged value of every metric, from ``metrics.csv``, goes in again.

        Returns:
            A line for a person: how to upload an offline run, or why W&B was not reached, which is no error: the
            files of the run are its record. None where there is no W&B run, or it is online.
        """
        stretch = None if _switched_off() else _latest_stretch(run_dir)
        if stretch is None or not values or not is_first_rank():
            return None
        run_id, offline = stretch
        try:
            if not offline and not account_configured():
                raise CaldpoError("its run is online, and no API key is configured here", remedy="wandb login")
            figures = {**_last_logged(run_dir / NAME), **values}
            run = self._init(run_dir, offline=offline, id=run_id, resume="allow")
            try:
                run.summary.update({name: value for name, value in figures.items() if math.isfinite(value)})
            finally:
                run.finish()
        except Exception as error:  # network, account, disk, or a service that does not start
            return f"W&B was not reached: {describe_error(error)}"
        return f"upload to W&B: wandb sync {_from_here(run_dir / 'wandb')}" if offline else None

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


def _refusal(error: Exception) -> CaldpoError:
    """Explain on one line why W&B starts no run."""
    from pydantic import ValidationError  # W&B's own check of its settings

    details = error.errors() if isinstance(error, ValidationError) else []
    problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details]
    return CaldpoError(
        f"W&B does not begin its run ({'; '.join(problems) or describe_error(error)})",
        key="logger",
        value="wandb",
        remedy="mend the key of logger or the WANDB_ variable, log in (wandb login), or take logger.mode=offline or"
        " logger=csv",
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


def _set_aside(folder: Path) -> None:
    """Move the offline stretches of a run to where ``wandb sync`` does not look: the next one repeats them."""
    for stretch in [path for path in folder.glob("offline-run-*") if _STRETCH.fullmatch(path.name)]:
        (folder / REPLACED).mkdir(exist_ok=True)
        stretch.rename(folder / REPLACED / stretch.name)


def _latest_stretch(run_dir: Path) -> tuple[str, bool] | None:
    """Return the id of the W&B run that began last in the run's folder, and whether it is offline; None without one."""
    files = ((_STRETCH.fullmatch(path.parent.name), path.stem) for path in run_dir.glob("wandb/*/run-*.wandb"))
    stretches = [(match["time"], stem.removeprefix("run-"), match["offline"]) for match, stem in files if match]
    if not stretches:
        return None
    _, run_id, offline = max(stretches, key=lambda stretch: stretch[0])
    return run_id, offline is not None


def _last_logged(metrics: Path) -> dict[str, float]:
    """Return the last value of each column, by its name in W&B."""
    last = {name: float(text) for row in iter_rows(metrics) for name, text in row.items() if text}
    return {"trainer/global_step" if name == STEP else name: value for name, value in last.items()}


def _from_here(folder: Path) -> Path:
    """Shorten a folder below the current one to its relative path."""
    return folder.relative_to(Path.cwd()) if folder.is_absolute() and folder.is_relative_to(Path.cwd()) else folder


def _switched_off() -> bool:
    off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes")
    return off or os.environ.get("WANDB_MODE") == "disabled"


def account_configured() -> bool:
    """Whether W&B can go online without asking: it has a key in the environment or in netrc, and is not offline."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
