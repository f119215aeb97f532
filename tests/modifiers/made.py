"""Losses with modifiers, made from their yamls, and plain numbers to compare with."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.losses.base import PreferenceLoss
from caldpo.modifiers.modified_loss import modified
from tests.losses.test_losses import load

MODIFIERS = sorted(file.stem for file in (conf_dir() / "modifier").glob("*.yaml"))
LOSSES = sorted(file.stem for file in (conf_dir() / "loss").glob("*.yaml"))


def modifier(name: str, **keys: Any) -> Any:
    """Build a modifier as its yaml has it, changed by ``keys``."""
    config = OmegaConf.load(conf_dir() / "modifier" / f"{name}.yaml")
    whole = OmegaConf.create({"seed": 0, "modifier": OmegaConf.merge(config, keys)})
    return instantiate(whole.modifier, _convert_="all")


def make(loss: str | PreferenceLoss, **modifiers: dict[str, Any]) -> PreferenceLoss:
    """Modify a loss by name: ``make("dpo", wpo={}, nll={"weight": 2.0})``."""
    bare: Any = load(loss) if isinstance(loss, str) else loss
    return modified(bare, {name: modifier(name, **keys) for name, keys in modifiers.items()})


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Assert equality to the last digits of float64."""
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
