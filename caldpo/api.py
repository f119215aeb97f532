"""Training from Python: ``train(compose([...]))`` does what ``python -m caldpo.train`` does, and returns a result."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from caldpo.config.overrides import parse_overrides, with_quoted_paths
from caldpo.config.preflight import check_run, composed
from caldpo.config.run_dir import claim_folder
from caldpo.config.run_lifecycle import run_job
from caldpo.config.summary_file import known_summary
from caldpo.errors import CaldpoError
from caldpo.resume.resume_command import finished_outcome, with_run_overrides
from caldpo.run_settings import SETTINGS, find_config_problems


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training run.

    Args:
        folder: of the run; ``folder / "policy"`` is the trained policy.
        metrics: final metrics by their logged names, held-out ones under ``val/``; units as in docs/training.md.
        summary: all of ``summary.json``.
    """

    folder: Path
    metrics: dict[str, float]
    summary: dict[str, Any] = field(repr=False)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the configuration of a training run from overrides as on the command line, checked as there.

    Values may still be changed; :func:`train` checks them again.

    Raises:
        CaldpoError: all that is wrong with the overrides.
    """
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise CaldpoError(
            f"{overrides!r} is no list of overrides, each a text as on the command line",
            remedy='write compose(["loss=dpo", "seed=1"])',
        )
    expanded = with_run_overrides(with_quoted_paths(list(overrides)))
    return composed("train", expanded, SETTINGS, find_config_problems)


def train(cfg: DictConfig) -> TrainingResult:
    """Train one policy, as :func:`compose` configures it, in this process.

    Raises:
        CaldpoError: something that can be mended, as by the command.
    """
    if not isinstance(cfg, DictConfig) or "hydra" not in cfg:
        raise CaldpoError(
            "this configuration does not say how it was composed",
            remedy='take that of caldpo: train(compose(["loss=dpo"]))',
        )
    cfg = copy.deepcopy(cfg)
    before = Singleton.get_state()
    try:
        check_run(cfg, SETTINGS, find_config_problems)
        named = parse_overrides(None, claim_folder(cfg, "run"))
        folder = Path(str(named[0].value() if named else cfg.hydra.run.dir)).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            cfg.hydra.runtime.output_dir, cfg.hydra.output_subdir = str(folder), None
            cfg.hydra.job.name, cfg.hydra.mode = "train", RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        run_job(_run, True, cfg, done=finished_outcome, reraise=True)
    finally:
        Singleton.set_state(before)
    summary = known_summary(folder)
    return TrainingResult(folder, dict(summary.get("metrics", {})), summary)


def _run(cfg: DictConfig) -> float | None:
    from caldpo.training_command import run  # torch and transformers load only for a configuration known to be good

    return run(cfg)
