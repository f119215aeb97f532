"""Decide, before a run is recorded in its folder, whether it has to run at all and whether it may."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.checkpointing.manifest import FOLDER
from caldpo.config.run_lifecycle import FINISHED, AlreadyDone
from caldpo.config.summary_file import known_summary
from caldpo.errors import CaldpoError
from caldpo.metrics_file import NAME
from caldpo.resume.config_diff import CONFIG, is_longer, read_config, require_same_config
from caldpo.resume.resume_overrides import AUTO, recorded_config
from caldpo.utils.process_rank import process_rank


def finished_outcome(cfg: DictConfig, folder: Path) -> AlreadyDone | None:
    """Return the outcome of a finished run that ``resume=auto`` leaves alone; None where there is work to do.

    Raises:
        CaldpoError: the folder holds another run, or one that the command does not ask to resume.
    """
    # Only the first rank looks at the folder: others may start when it has begun to write there.
    if cfg.dry_run or cfg.replay is not None or cfg.resume is None:
        if process_rank() == 0 and _holds_run(folder):
            raise CaldpoError(
                "this folder holds a run already, which would be written over",
                key="hydra.run.dir",
                value=folder,
                remedy="add resume=auto to go on with it (one that has finished is left alone), or name another folder;"
                " with dry_run=true or replay=FILE leave hydra.run.dir out",
            )
        return None
    began = read_config(folder)
    if began is None:
        if process_rank() == 0 and _holds_run(folder):
            raise CaldpoError(
                f"{CONFIG} of this run is missing: the configuration that it started with is not known",
                key="resume",
                value=folder,
                remedy="bring that file back, or start a new run in another folder",
            )
        return None
    config = recorded_config(cfg, str(HydraConfig.get().runtime.choices["loss"]))
    require_same_config(began, config, folder)
    summary = known_summary(folder)
    if cfg.resume != AUTO or summary.get("status") != FINISHED or is_longer(began, config):
        return None
    return AlreadyDone(summary.get("metrics", {}).get(cfg.optimized_metric))


def _holds_run(folder: Path) -> bool:
    return (folder / NAME).is_file() or any((folder / FOLDER).glob("step-*"))
