"""Find and disable the noise of training mode: dropout, dropped layers, jitter.

transformers has no single place for it: modules of torch, attributes that are passed to functions, and rates that are
read from the configuration at every forward. Noise by other names is detected by a probe, see
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

_CONFIG_RATE, _MODULE_RATE = re.compile(r"drop"), re.compile(r"drop|jitter")
_NO_NOISE = {"router_jitter_noise"}  # phimoe's bound on near ties between experts, which evaluation reads as well
_ORIGINAL = "settings_of_checkpoint"  # attribute of a model, so that copies of it have their own

Rate = tuple[Any, str, float]
"""The module or configuration that holds a rate, its name there, and its value."""


def dropout_rates(model: nn.Module) -> list[Rate]:
    """List the rates above 0 of the model's modules, which act only in training mode, and of its configuration."""
    rates: list[Rate] = []
    seen: set[int] = set()
    for module in model.modules():
        drops = "drop" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            if isinstance(value, PretrainedConfig):
                rates += _config_rates(value, seen)
            elif _is_rate(value) and name not in _NO_NOISE and (_MODULE_RATE.search(name) or (drops and name == "p")):
                rates.append((module, name, value))
    return rates


def zero_settings(model: nn.Module, settings: list[Rate]) -> None:
    """Set numbers to 0; :func:`checkpoint_settings` restores those of configurations while they are written."""
    for holder, name, value in settings:
        setattr(holder, name, type(value)(0))  # some configurations accept only integers
    of_config = [setting for setting in settings if isinstance(setting[0], PretrainedConfig)]
    setattr(model, _ORIGINAL, [*getattr(model, _ORIGINAL, ()), *of_config])


@contextmanager
def checkpoint_settings(model: nn.Module) -> Iterator[None]:
    """Restore the configuration's numbers of the original checkpoint, while it is written."""
    original: list[Rate] = getattr(model, _ORIGINAL, [])
    for config, name, rate in original:
        setattr(config, name, rate)
    try:
        yield
    finally:
        for config, name, rate in original:
            setattr(config, name, type(rate)(0))


def copy_configuration(model: nn.Module) -> None:
    """Give a model its own copy of its configuration, from which the caller may build other models."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PretrainedConfig):
                vars(module)[name] = copy.deepcopy(value, copies)


def _config_rates(config: PretrainedConfig, seen: set[int]) -> list[Rate]:
    if id(config) in seen:
        return []
    seen.add(id(config))
    rates: list[Rate] = []
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            rates += _config_rates(value, seen)
        elif _is_rate(value) and _CONFIG_RATE.search(name):
            rates.append((config, name, value))
    return rates


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
