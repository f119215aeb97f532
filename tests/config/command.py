"""A command whose runs behave as ``behave`` says; the tests of jobs, sweeps and signals run it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.config.entry import hydra_entry
from caldpo.errors import CaldpoError


class SIGTERMException(SystemExit):
    """What Lightning raises on SIGTERM."""


@hydra_entry("command")
def main(cfg: DictConfig) -> float:
    """Finish, fail, or wait to be stopped."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.behave == "mistake":
        raise CaldpoError("must not be 7", key="seed", value=7, remedy="take 8")
    if cfg.behave == "crash":
        raise ValueError(f"boom with {os.environ.get('SOME_API_KEY')}\nsecond line")
    if cfg.behave == "sigterm":
        raise SIGTERMException
    if cfg.behave == "wait":
        (folder / "waiting").touch()
        time.sleep(60)
    return float(cfg.seed)


if __name__ == "__main__":
    main()
