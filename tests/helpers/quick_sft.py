"""The embedded model under the name that its full fit would have, but hardly fitted: for what is run, not measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import caldpo
from caldpo.components import build
from caldpo.environments.sft_policy import save_sft


def write_quick_sft(folder: Path) -> None:
    """Write it into ``outputs/cache`` below a folder, where ``model=tiny`` finds it."""
    source = build(caldpo.compose().model, "model")
    save_sft(source.environment, replace(source.recipe, steps=3), folder / source.cache / source.name)
