"""A command whose runs behave as ``behave`` says; the tests of jobs, sweeps and signals run it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.errors import CaldpoError

MISTAKE = CaldpoError("must not be 7", key="seed", value=7, remedy="take 8")


class SIGTERMException(SystemExit):
    """What Lightning raises on SIGTERM."""


@hydra_entry("command")
def main(cfg: DictConfig) -> float:
    """Finish, fail, or wait to be stopped."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.behave == "mistake":
        raise MISTAKE
    if cfg.behave == "warn":
        from huggingface_hub.utils.logging import get_logger

        get_logger("huggingface_hub.any").warning("the hub is slow")
    if cfg.behave == "crash":
        raise ValueError(f"boom with {os.environ.get('SOME_API_KEY')}\nsecond line")
    if cfg.behave == "sigterm":
        raise SIGTERMException
    if cfg.behave == "wait":
        (folder / "waiting").touch()
        time.sleep(60)
    if cfg.behave == "die":
        _other(folder, "slow", 20)  # the neighbour has begun
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.behave == "slow":
        (folder / "begun").touch()
        time.sleep(1.5)
        (folder / "result").write_text("whole")
    if cfg.behave == "tell":
        (folder / "process").write_text(str(os.getpid()))
    return float(cfg.seed)


def _other(folder: Path, behave: str, longest: float) -> None:
    """Wait until the run beside this one, if there is any, has begun."""
    end = time.monotonic() + longest
    while not list(folder.parent.glob(f"*{behave}*/begun")) and time.monotonic() < end:
        time.sleep(0.02)


if __name__ == "__main__":
    if os.environ.get("IMPATIENT"):
        from submitit.core.core import Job

        Job._results_timeout_s = 1  # for a result that does not come: 15 s else
    main()
