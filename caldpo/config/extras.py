"""The extras of pyproject.toml, by the option that needs them."""

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
    ("suite", "judge"): "judge",
    ("suite", "leaderboard"): "eval",
}


def install(group: str, option: str) -> str:
    """Name the extra to install where the packages behind an option are missing."""
    return f"install the extra that brings it: pip install 'caldpo[{EXTRAS[group, option]}]'"
