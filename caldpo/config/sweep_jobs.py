"""The runs of a sweep before they start: their overrides, and which of them suffice to show every mistake."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from caldpo.config.overrides import parse_overrides
from caldpo.config.validation import Problem

Job = list[str]  # the overrides of one run

# Launchers whose runs are one process each: Lightning's further ones would repeat the sweep, or the job.
_ONE_PROCESS = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")
_CLUSTER = "SlurmLauncher"


@dataclass(frozen=True)
class SweepJobs:
    """The runs that a sweep starts."""

    jobs: list[Job]  # of a sweeper that draws values, runs that show each value once
    complete: bool  # whether these are all runs
    problems: list[Problem]  # why the sweep cannot be expanded


def expand_sweep(loader: ConfigLoader | None, sweep_cfg: DictConfig) -> SweepJobs:
    """Expand a sweep into its runs, in the order in which Hydra starts them; no ``glob(*)`` without a loader."""
    params = OmegaConf.select(sweep_cfg, "hydra.sweeper.params") or {}
    texts = [*(f"{key}={value}" for key, value in params.items()), *sweep_cfg.hydra.overrides.task]
    overrides = parse_overrides(loader, texts)
    values = {override.get_key_element(): _values(override) for override in overrides}
    if _draws(sweep_cfg):
        return SweepJobs(list(_one_value_at_a_time(values)), complete=False, problems=[])
    intervals = [o.key_or_group for o in overrides if o.is_sweep_override() and not o.is_discrete_sweep()]
    if intervals:
        wrong = "an interval has no single values to run"
        remedy = "list values, or choose a sweeper that draws them (hydra/sweeper=...)"
        return SweepJobs([], complete=True, problems=[Problem(key, None, wrong, remedy) for key in intervals])
    choices = [[f"{key}={value}" for value in of_key] for key, of_key in values.items()]
    return SweepJobs([list(job) for job in itertools.product(*choices)], complete=True, problems=[])


def count_runs(loader: ConfigLoader | None, sweep_cfg: DictConfig) -> int | None:
    """Count the runs of a sweep; None where its sweeper decides as it goes, or it cannot be expanded."""
    if _draws(sweep_cfg):
        return None
    sweep = expand_sweep(loader, sweep_cfg)
    return None if sweep.problems else len(sweep.jobs)


def _draws(sweep_cfg: DictConfig) -> bool:
    """Whether the sweeper decides as it goes what it runs."""
    return not str(OmegaConf.select(sweep_cfg, "hydra.sweeper._target_")).endswith(".BasicSweeper")


def fixed_keys(loader: ConfigLoader, sweep_cfg: DictConfig) -> set[str]:
    """List the keys that the command line gives a single value, the same in every run of a sweep."""
    overrides = parse_overrides(loader, list(sweep_cfg.hydra.overrides.task))
    return {override.get_key_element() for override in overrides if not override.is_sweep_override()}


def representative_jobs(loader: ConfigLoader, jobs: Sequence[Job]) -> list[list[tuple[int, Job]]]:
    """Pick the jobs that can show a problem which no earlier one shows, with their numbers, in two batches.

    Which keys there are, and what their values may be, follows from the choice of groups: each other override
    is composed once per choice, instead of once per combination with all others. The first batch has each
    override at least once, so that most mistakes are answered soon; the second the rest.
    """
    choices = {text for text in {text for job in jobs for text in job} if _chooses_option(loader, text)}
    covered: set[str] = set()
    combined: set[tuple[frozenset[str], str]] = set()
    first, second = [], []
    for number, job in enumerate(jobs):
        if not set(job) <= covered or not job:
            first.append((number, job))
            covered |= set(job)
            combined |= {(frozenset(job) & choices, text) for text in [*job, ""]}
    for number, job in enumerate(jobs):
        if new := {(frozenset(job) & choices, text) for text in [*job, ""]} - combined:
            second.append((number, job))
            combined |= new
    return [first, second]


def find_process_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Refuse several devices a run under a launcher that does not start as many processes."""
    launcher = str(cfg.hydra.launcher.get("_target_")).rpartition(".")[2]
    devices = OmegaConf.select(cfg, "trainer.devices")
    several = isinstance(devices, int) and not isinstance(devices, bool) and devices > 1
    # torchrun has already started one process per device.
    if not several or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    tasks = cfg.hydra.launcher.get("tasks_per_node")
    if launcher in _ONE_PROCESS:
        yield Problem(
            "trainer.devices",
            str(devices),
            "a sweep on this machine is for one device a run: the further processes would start the sweep again",
            "set trainer.devices=1, start the runs one by one, or by submitit on a cluster (hydra/launcher=slurm)",
        )
    elif launcher == _CLUSTER and tasks != devices:
        yield Problem(
            "hydra.launcher.tasks_per_node",
            str(tasks),
            f"the cluster has to start {devices} processes a node, one per device of trainer.devices",
            f"set it to {devices}",
        )


def _chooses_option(loader: ConfigLoader, text: str) -> bool:
    key = text.split("=")[0].lstrip("+~").split("@")[0]
    return "." not in key and bool(loader.get_group_options(key))


def _one_value_at_a_time(values: dict[str, list[str]]) -> Iterator[Job]:
    """Yield jobs that show every value of every key once, for sweepers that choose combinations themselves."""
    first = {key: of_key[0] for key, of_key in values.items() if of_key}
    yield [f"{key}={value}" for key, value in first.items()]
    for key, of_key in values.items():
        for value in of_key[1:]:
            yield [f"{k}={v}" for k, v in {**first, key: value}.items()]


def _values(override: Override) -> list[str]:
    """List the values of an override as they are written; of an interval its ends."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    interval: Any = override.value()
    return [str(interval.start), str(interval.end)] if isinstance(interval, IntervalSweep) else []
