"""Asked before a run is recorded in its folder: whether it has to run at all, and whether it may."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.checkpointing.manifest import FOLDER
from caldpo.config.run_lifecycle import FINISHED, AlreadyDone
from caldpo.config.summary_file import known_summary
from caldpo.errors import CaldpoError
from caldpo.metrics_file import NAME
from caldpo.resume.config_diff import CONFIG, read_config, require_same_config
from caldpo.resume.extend_run import is_longer
from caldpo.resume.resume_overrides import AUTO, as_kept
from caldpo.utils.process_rank import process_rank


def settle(cfg: DictConfig, folder: Path) -> AlreadyDone | None:
    """The outcome of a run that has finished, where ``resume=auto`` leaves it alone; None where there is work to do.

    Args:
        cfg: of the run.
        folder: the run's.

    Raises:
        CaldpoError: the folder holds another run, or one that the command does not ask to go on with.
    """
    if cfg.dry_run or cfg.replay is not None:
        if process_rank() == 0:
            _require_unused(folder)
        return None
    if cfg.resume is None:
        if process_rank() == 0:  # the first one writes; others may be started when it has begun to
            _require_unused(folder)
        return None
    then = read_config(folder)
    if then is None:
        if process_rank() == 0:  # others may be started when it has begun to write
            _require_config(folder)
        return None
    now = as_kept(cfg, str(HydraConfig.get().runtime.choices["loss"]))
    require_same_config(then, now, folder)
    summary = known_summary(folder)
    if cfg.resume != AUTO or summary.get("status") != FINISHED or is_longer(then, now):
        return None
    return AlreadyDone(summary.get("metrics", {}).get(cfg.optimized_metric))


def _require_config(folder: Path) -> None:
    """A run without the configuration that it began with may be any: it is not begun anew over what it left.

    Raises:
        CaldpoError: the folder holds metrics or checkpoints.
    """
    if _holds_run(folder):
        raise CaldpoError(
            f"{CONFIG} of this run is missing: what it was begun with is not known",
            key="resume",
            value=folder,
            remedy="bring that file back, or start a new run in another folder",
        )


def _holds_run(folder: Path) -> bool:
    return (folder / NAME).is_file() or any((folder / FOLDER).glob("step-*"))


def _require_unused(folder: Path) -> None:
    """Nothing that a run left is written over.

    Raises:
        CaldpoError: the folder holds metrics or checkpoints.
    """
    if _holds_run(folder):
        raise CaldpoError(
            "this folder holds a run already, which would be written over",
            key="hydra.run.dir",
            value=folder,
            remedy="add resume=auto to go on with it (one that has finished is left alone), or name another folder;"
            " with dry_run=true or replay=FILE leave hydra.run.dir out",
        )
