"""The extras of pyproject.toml, by the option that needs them, and which of a run's are missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from caldpo.config.validation import Problem
from caldpo.errors import CaldpoError

EXTRAS = {
    ("hydra/launcher", "joblib"): "sweep",
    ("hydra/launcher", "submitit_local"): "slurm",
    ("hydra/launcher", "submitit_slurm"): "slurm",
    ("hydra/sweeper", "optuna"): "search",
    ("adapter", "lora"): "peft",
    ("adapter", "dora"): "peft",
    ("adapter", "qlora"): "qlora",
    ("optim", "adamw_8bit"): "bnb",
    ("optim", "adamw_paged"): "bnb",
    ("optim", "lion"): "bnb",
    ("optim", "adamw_stochastic"): "ao",
    ("trainer", "deepspeed_zero2"): "deepspeed",
    ("logger", "tensorboard"): "tensorboard",
    ("logger", "mlflow"): "mlflow",
    ("logger", "trackio"): "trackio",
    ("suite", "judge"): "judge",
    ("suite", "leaderboard"): "eval",
}
# packages of the extras of a training run; Hydra's plugins are missing as options already
_PACKAGES = {
    "peft": ("peft",),
    "qlora": ("bitsandbytes", "peft"),
    "bnb": ("bitsandbytes",),
    "ao": ("torchao",),
    "deepspeed": ("deepspeed",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}


def find_missing_packages(cfg: DictConfig) -> Iterator[Problem]:
    """Yield the problem of each option of a training run whose packages are not installed."""
    trackers = OmegaConf.select(cfg, "logger") or {}  # several may be chosen, each a section named by its option
    for group, option in [*cfg.hydra.runtime.choices.items(), *(("logger", name) for name in trackers)]:
        for package in _PACKAGES.get(EXTRAS.get((group, option), ""), ()):
            if importlib.util.find_spec(package) is None:
                yield Problem(group, option, f"{package} is not installed", install(group, option))


def install(group: str, option: str) -> str:
    """Name the extra to install where the packages behind an option are missing."""
    return f"install the extra that brings it: pip install 'caldpo[{EXTRAS[group, option]}]'"


def require_package(package: str, group: str, option: str) -> None:
    """Refuse an option whose package is not installed, naming the extra that installs it.

    Raises:
        CaldpoError: about ``group=option``.
    """
    if importlib.util.find_spec(package) is None:
        raise CaldpoError(f"{package} is not installed", key=group, value=option, remedy=install(group, option))
