"""Explain a key that is in no configuration of the command: what is meant by it, or which option would bring it."""

from __future__ import annotations

from collections.abc import Callable

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from caldpo.config.config_groups import groups_of, has_group, options_of
from caldpo.config.did_you_mean import KEYS, meant_keys, suggest
from caldpo.config.validation import Problem

# Options that bring the keys which are most often set without them.
_BRINGING_KEYS = ("adapter=lora", "model=hf", "loss=dpo")
Compose = Callable[[list[str]], DictConfig]
FAULTS = (HydraException, OSError, TypeError, ValueError, yaml.YAMLError)  # what Hydra lets out while composing


def unknown_key(override: Override, compose: Compose, loader: ConfigLoader, others: list[str]) -> Problem:
    """Explain an unknown key by the keys beside which it would stand."""
    key, value = override.key_or_group, override.value()
    cfg = _composed_without_faults(compose, loader, others)
    if cfg is None:
        return Problem(key, None, "unknown key")
    options = options_of(loader, key)
    if options and key not in cfg and has_group(cfg, loader, key):
        return Problem(key, None, "not chosen by the defaults list", f"add it as +{key}={'|'.join(options)}")
    section = OmegaConf.select(cfg, key, throw_on_missing=False)
    if isinstance(value, dict) and isinstance(section, DictConfig):
        key = next((f"{key}.{name}" for name in value if name not in section), key)
    parent, names = "", key.split(".")
    while len(names) > 1:
        below = OmegaConf.select(cfg, ".".join([*parent.split("."), names[0]]).strip("."), throw_on_missing=False)
        if not isinstance(below, DictConfig):
            break
        parent = f"{parent}.{names.pop(0)}".strip(".")
    section = OmegaConf.select(cfg, parent) if parent else cfg
    known = [str(k) for k in section if k != "hydra" and not str(k).startswith("_")]
    choices = [*known, *groups_of(cfg, loader)] if not parent else known
    # in a sweep over a group, say which of its options lacks the key
    chosen = next((o for o in reversed(others) if parent and o.split("=")[0] == parent), None)
    where = chosen or parent or "the top level"
    meant = meant_keys(key, cfg, groups_of(cfg, loader))
    near = f" (did you mean {' or '.join(meant[:3])}?)" if meant else suggest(names[0], choices)
    wrong = f"unknown key{f' with {chosen}' if chosen else ''}"
    if not meant and (not near or parent or key in KEYS):
        option, meant_with = _of_other_option(key, cfg, compose, loader, others)
        if option:
            near = f" (did you mean {meant_with}?)" if meant_with != key else ""
            others_choice = next((o for o in others if o.split("=")[0] == option.split("=")[0]), None)
            remedy = f"choose {option} in place of {others_choice}" if others_choice else f"add {option}"
            return Problem(
                key, None, f"{wrong}{near}", remedy if meant_with == key else f"{remedy} and write {meant_with}=..."
            )
    listed = f"the keys of {where} are {', '.join(sorted(set(choices)))}" if choices else f"{where} has no keys"
    return Problem(key, None, f"{wrong}{near}", f"write {_assigned(cfg, meant[0])}" if meant else listed)


def _of_other_option(
    key: str, cfg: DictConfig, compose: Compose, loader: ConfigLoader, others: list[str]
) -> tuple[str, str] | tuple[None, None]:
    """Find the option with which there would be a key, or one that is meant by it; return both."""
    groups, section = groups_of(cfg, loader), key.partition(".")[0]
    for option in _BRINGING_KEYS:
        group = option.partition("=")[0]
        if group not in groups or (section in groups and section != group):
            continue
        if group == "loss" and any(text.split("=")[0] == group for text in others):
            continue  # another loss is another experiment
        other = _composed_without_faults(compose, loader, [*others, option])
        meant = [] if other is None else meant_keys(key, other, [])
        if chosen := next((name for name in meant if name.startswith(f"{group}.")), None):
            return option, chosen
    return None, None


def _assigned(cfg: DictConfig, key: str) -> str:
    """Write an override of ``key`` with its value left open."""
    value = OmegaConf.select(cfg, key, throw_on_missing=False)
    return f"'{key}=[...]'" if isinstance(value, ListConfig) else f"{key}=..."


def _composed_without_faults(compose: Compose, loader: ConfigLoader, overrides: list[str]) -> DictConfig | None:
    """Compose these overrides, or those alone that choose an option, where others are faulty, too."""
    chosen = [o for o in overrides if options_of(loader, o.partition("=")[0].lstrip("+~").partition("@")[0])]
    for texts in (overrides, chosen):
        try:
            return compose(texts)
        except FAULTS:
            continue
    return None
