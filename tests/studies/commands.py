"""A small study of the tabular environment, for tests."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

# little training: what is tested is the study
TINY = (
    "losses=[dpo,cal_dpo]",
    "conditions=[tabular]",
    "beside=[reference]",
    "trials=2",
    "seeds=2",
    "resamples=50",
    "hydra/launcher=basic",
    "output=study",
    'trial_overrides=["trainer.max_steps=4","trainer.val_check_interval=100000","callbacks.study.prompts=8"]',
    'final_overrides=["trainer.max_steps=4","trainer.val_check_interval=2","callbacks.study.frontier_prompts=8"]',
    '+condition_overrides.diverging=["model=tabular","data.test=test","optim.lr=1.0e+39"]',
    '+condition_overrides.broken=["model=tabular","data.test=nowhere"]',
)


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a report, without the times."""
    found = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv") if path.stat().st_size > 1}
    return {name: table.drop(columns="cpu_seconds", errors="ignore") for name, table in found.items()}
