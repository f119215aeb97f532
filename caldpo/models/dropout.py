"""Noise that a model adds while it trains: dropout, dropped layers, jitter. Found by its names, and switched off.

transformers has no one place for it: modules of torch, numbers beside them that are handed to functions, and rates that
are read from the configuration at every forward. What goes by none of these names is found by a probe, see
:mod:`caldpo.models.model_probes`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PretrainedConfig

_DROP, _NOISE = re.compile(r"drop"), re.compile(r"drop|jitter")
_NO_NOISE = {"router_jitter_noise"}  # phimoe's bound on near ties between experts, which evaluation reads as well
_KEPT = "settings_of_checkpoint"

Rate = tuple[Any, str, float]
"""What holds a rate, its name there, and its value."""


def rates(model: nn.Module) -> list[Rate]:
    """Every rate above 0 of the model's modules, which act in training mode alone, and of its configuration."""
    found: list[Rate] = []
    seen: set[int] = set()
    for module in model.modules():
        drops = "drop" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            if isinstance(value, PretrainedConfig):
                found += _in_config(value, seen)
            elif _is_rate(value) and name not in _NO_NOISE and (_NOISE.search(name) or (drops and name == "p")):
                found.append((module, name, value))
    return found


def acts(model: nn.Module) -> bool:
    """Whether the model has a rate above 0, so that training mode may be another model than evaluation mode."""
    return bool(rates(model))


def switch_off(model: nn.Module) -> None:
    """Set every rate to 0. :func:`checkpoint_settings` puts those of the configuration back where it is written."""
    set_to_zero(model, rates(model))


def set_to_zero(model: nn.Module, settings: list[Rate]) -> None:
    """Set numbers to 0, of which those of configurations come back where they are written."""
    for holder, name, value in settings:
        setattr(holder, name, type(value)(0))  # some configurations hold whole numbers alone
    kept = [setting for setting in settings if isinstance(setting[0], PretrainedConfig)]
    setattr(model, _KEPT, [*getattr(model, _KEPT, ()), *kept])


@contextmanager
def checkpoint_settings(model: nn.Module) -> Iterator[None]:
    """The configuration with the numbers that the checkpoint came with, for as long as it is written."""
    kept: list[Rate] = getattr(model, _KEPT, [])
    for config, name, rate in kept:
        setattr(config, name, rate)
    try:
        yield
    finally:
        for config, name, rate in kept:
            setattr(config, name, type(rate)(0))


def own_configuration(model: nn.Module) -> None:
    """Give a model a copy of its configuration: whoever handed it in may build other models from it."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PretrainedConfig):
                vars(module)[name] = copy.deepcopy(value, copies)


def _in_config(config: PretrainedConfig, seen: set[int]) -> list[Rate]:
    if id(config) in seen:
        return []
    seen.add(id(config))
    found: list[Rate] = []
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            found += _in_config(value, seen)
        elif _is_rate(value) and _DROP.search(name):
            found.append((config, name, value))
    return found


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
