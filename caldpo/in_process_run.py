"""Run a training configuration in this process as its command does: checked, in a folder of its own, recorded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from caldpo.config.hydra_session import outer_config_kept
from caldpo.config.overrides import parse_overrides
from caldpo.config.plain_compose import with_hydra_section
from caldpo.config.preflight import check_run
from caldpo.config.run_dir import claim_folder
from caldpo.config.run_lifecycle import run_job
from caldpo.errors import CaldpoError
from caldpo.resume.resume_command import finished_outcome
from caldpo.run_settings import SETTINGS, find_config_problems

_SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # of the environment, as Lightning's seed_everything sets them


def run_in_process(task: Callable[[DictConfig], Any], cfg: DictConfig, folder: Path | None = None) -> tuple[Path, Any]:
    """Run ``task(cfg)`` with Hydra's state set for it; it and the random state are restored whatever happens.

    Args:
        task: takes the configuration without Hydra's section.
        cfg: of a training, by :func:`caldpo.compose` or by Hydra's own compose, with its section or without.
        folder: of the run; None takes ``hydra.run.dir``.

    Returns:
        The run's folder, and what the task returned.

    Raises:
        CaldpoError: something that can be mended, as by the command.
    """
    if not isinstance(cfg, DictConfig):
        raise CaldpoError(
            f"is a {type(cfg).__name__}, and a configuration of Hydra is needed",
            key="cfg",
            remedy='write train(compose(["loss=dpo"])), or call fit(MODEL, PAIRS), which takes plain values',
        )
    with outer_config_kept():
        cfg = with_hydra_section(cfg, "train")
        if folder is not None:
            with read_write(cfg.hydra), open_dict(cfg.hydra):
                cfg.hydra.run.dir = str(folder)
        check_run(cfg, SETTINGS, find_config_problems)
        named = parse_overrides(None, claim_folder(cfg, "run"))
        place = Path(str(named[0].value() if named else cfg.hydra.run.dir)).expanduser().absolute()
        place.mkdir(parents=True, exist_ok=True)
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            cfg.hydra.runtime.output_dir, cfg.hydra.output_subdir = str(place), None
            cfg.hydra.job.name, cfg.hydra.mode = "train", RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        with _random_state_kept():
            return place, run_job(task, True, cfg, done=finished_outcome, reraise=True)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the caller's random state: a run seeds all of it, and a loop around it would repeat its own draws."""
    import random

    import numpy as np
    import torch

    of_python, of_numpy = random.getstate(), np.random.get_state()
    seeds = {name: os.environ.get(name) for name in _SEEDS}
    try:
        used = torch.cuda.device_count() if torch.cuda.is_initialized() else 0  # else it has no state
        with torch.random.fork_rng(devices=range(used)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        for name, seed in seeds.items():
            os.environ.pop(name, None)
            os.environ.update({} if seed is None else {name: seed})
