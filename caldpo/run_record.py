"""What a run writes down at its start, and a resumed one is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.config.run_lifecycle import write_json
from caldpo.config.summary_file import SUMMARY, known_summary
from caldpo.resume.config_diff import CONFIG, read_config, require_same_config
from caldpo.resume.resume_overrides import OVERRIDES, as_kept, kept_overrides
from caldpo.utils.atomic_io import write_text
from caldpo.utils.process_rank import process_rank

# keys of summary.json: how often the run was started, and its optimiser steps from end to end
STRETCHES, PLANNED = "stretches", "planned_steps"
MODEL_COMMIT = "model_commit"  # of a hub model, that a resumed run loads again
DATA_COMMIT = "data_commit"  # of a data set of the hub, likewise
DATE = "date"  # of the run's first start, which chat templates that write the date get throughout
TOLD = ("formula", "policy", "reference", "data", "versions")  # what a run is, also one that is stopped
_KEPT = (OVERRIDES, STRETCHES, PLANNED, MODEL_COMMIT, DATA_COMMIT, DATE, *TOLD)


def is_begun(run_dir: Path) -> bool:
    """Whether a run was begun in this folder."""
    return (run_dir / CONFIG).is_file()


def save_config(
    cfg: DictConfig, loss_name: str, run_dir: Path, *, resumed: bool = False, first_rank: bool = True
) -> dict[str, Any]:
    """config.yaml: the resolved configuration without secrets, and the name of the loss's option.

    Into ``summary.json`` goes what the run was started with.

    Args:
        cfg: of the run.
        loss_name: the loss's option.
        run_dir: the run's folder.
        resumed: hold it against the one that lies there.
        first_rank: the one that writes.

    Raises:
        CaldpoError: a resumed run has another configuration than it was begun with.
    """
    config = as_kept(cfg, loss_name)
    then = read_config(run_dir) if resumed else None
    if then is not None:
        require_same_config(then, config, run_dir)
    if first_rank:
        write_text(run_dir / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        summary = known_summary(run_dir)
        known = summary.get(STRETCHES, 0)
        before = known if resumed and isinstance(known, int) else 0
        news = {OVERRIDES: kept_overrides(HydraConfig.get().overrides.task), STRETCHES: before + 1}
        write_json(run_dir / SUMMARY, summary | news)
    return config


def note(run_dir: Path, news: dict[str, Any]) -> None:
    """Add to ``summary.json`` while the run is under way; the first rank does."""
    if process_rank() == 0:
        write_json(run_dir / SUMMARY, known_summary(run_dir) | news)


def begun(run_dir: Path) -> dict[str, Any]:
    """What ``summary.json`` has known since the run's start."""
    return {key: value for key, value in known_summary(run_dir).items() if key in _KEPT}
