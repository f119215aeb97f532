"""The extras of pyproject.toml, by the option that needs them."""

import importlib.util

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
