"""Whether a sweep's launcher goes with the runs that it is to start. No heavy imports."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf

from caldpo.config.validation import Problem

# Launchers whose runs are one process each: Lightning's further ones would repeat the sweep, or the job.
_ONE_PROCESS = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")
_CLUSTER = "SlurmLauncher"


def find_processes(cfg: DictConfig) -> list[Problem]:
    """Several devices a run under a launcher that does not start as many processes."""
    launcher = str(cfg.hydra.launcher.get("_target_")).rpartition(".")[2]
    devices = OmegaConf.select(cfg, "trainer.devices")
    several = isinstance(devices, int) and not isinstance(devices, bool) and devices > 1
    # torchrun has already started one process per device.
    if not several or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    if launcher in _ONE_PROCESS:
        wrong = "a sweep on this machine is for one device a run: the further processes would start the sweep again"
        remedy = "set trainer.devices=1, start the runs one by one, or by submitit on a cluster (hydra/launcher=slurm)"
        return [Problem("trainer.devices", str(devices), wrong, remedy)]
    tasks = cfg.hydra.launcher.get("tasks_per_node")
    if launcher == _CLUSTER and tasks != devices:
        wrong = f"the cluster is to start {devices} processes a node, one per device of trainer.devices"
        return [Problem("hydra.launcher.tasks_per_node", str(tasks), wrong, f"set it to {devices}")]
    return []
