"""How many runs a sweep was to have, by Hydra's record of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from caldpo.config.sweep_jobs import count_runs
from caldpo.utils.yaml_io import read_yaml


def not_begun(folders: Sequence[Path], runs: int) -> int:
    """Return how many runs of compared sweeps are still to come, of which ``runs`` are there; 0 where nobody knows."""
    planned = [planned_runs(folder) for folder in folders]
    return 0 if None in planned else max(0, sum(count or 0 for count in planned) - runs)


def planned_runs(folder: Path) -> int | None:
    """Return how many runs a sweep starts, by Hydra's record of it; None where there is none or it does not say."""
    try:
        record = folder / "multirun.yaml"
        return _planned(record, record.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache
def _planned(record: Path, written: int) -> int | None:
    try:
        return count_runs(None, OmegaConf.create({**read_yaml(record)}))
    except Exception:  # it is no such record, or another version wrote it: the number is not known
        return None
