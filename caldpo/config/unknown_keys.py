"""Explain a key that is in no configuration of the command: what is meant by it, or which option would bring it."""

from __future__ import annotations

import itertools

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from caldpo.config.composer import Composer
from caldpo.config.did_you_mean import KEYS, meant_keys, section_at, suggest
from caldpo.config.validation import Problem

# Options that bring the keys which are most often set without them.
_BRINGING_KEYS = ("adapter=lora", "model=hf", "loss=dpo")


def unknown_key(override: Override, composer: Composer, others: list[str]) -> Problem:
    """Explain an unknown key by the keys beside which it would stand; ``others``: the overrides beside it."""
    key, value = override.key_or_group, override.value()
    cfg = composer.compose_or_none(others)
    if cfg is None:
        return Problem(key, None, "unknown key")
    options = composer.options(key)
    if options and key not in cfg and composer.has_group(cfg, key):
        return Problem(key, None, "not chosen by the defaults list", f"add it as +{key}={'|'.join(options)}")
    section = section_at(cfg, key)
    if isinstance(value, dict) and section is not None:
        key = next((f"{key}.{name}" for name in value if name not in section), key)
    names = key.split(".")
    above = itertools.accumulate(names[:-1], "{}.{}".format)  # of a.b.c: a, a.b
    sections = list(itertools.takewhile(lambda place: section_at(cfg, place) is not None, above))
    parent, name = sections[-1] if sections else "", names[len(sections)]
    known = [str(k) for k in section_at(cfg, parent) or () if k != "hydra" and not str(k).startswith("_")]
    choices = known if parent else [*known, *composer.groups(cfg)]
    meant = meant_keys(key, cfg, composer.groups(cfg))
    near = f" (did you mean {' or '.join(meant[:3])}?)" if meant else suggest(name, choices)
    # in a sweep over a group, say which of its options lacks the key
    option = next((text for text in reversed(others) if parent and text.split("=")[0] == parent), None)
    wrong = f"unknown key{f' with {option}' if option else ''}"
    if not meant and (not near or parent or key in KEYS):
        bringing = _bringing_option(key, cfg, composer, others)
        if bringing is not None:
            return _key_of_option(key, wrong, *bringing, others)
    if meant:
        return Problem(key, None, f"{wrong}{near}", f"write {_assigned(cfg, meant[0])}")
    where = option or parent or "the top level"
    listed = f"the keys of {where} are {', '.join(sorted(set(choices)))}" if choices else f"{where} has no keys"
    return Problem(key, None, f"{wrong}{near}", listed)


def _bringing_option(key: str, cfg: DictConfig, composer: Composer, others: list[str]) -> tuple[str, str] | None:
    """Find an option that brings a key, or one that is meant by it; return option and key."""
    groups, section = composer.groups(cfg), key.partition(".")[0]
    for option in _BRINGING_KEYS:
        group = option.partition("=")[0]
        if group not in groups or (section in groups and section != group):
            continue
        if group == "loss" and any(text.split("=")[0] == group for text in others):
            continue  # another loss is another experiment
        with_option = composer.compose_or_none([*others, option])
        meant = [] if with_option is None else meant_keys(key, with_option, [])
        if brought := next((name for name in meant if name.startswith(f"{group}.")), None):
            return option, brought
    return None


def _key_of_option(key: str, wrong: str, option: str, brought: str, others: list[str]) -> Problem:
    """Explain a key that ``option`` would bring under the name ``brought``."""
    chosen = next((text for text in others if text.split("=")[0] == option.split("=")[0]), None)
    remedy = f"choose {option} in place of {chosen}" if chosen else f"add {option}"
    if brought == key:
        return Problem(key, None, wrong, remedy)
    return Problem(key, None, f"{wrong} (did you mean {brought}?)", f"{remedy} and write {brought}=...")


def _assigned(cfg: DictConfig, key: str) -> str:
    """Write an override of ``key`` with its value left open."""
    value = OmegaConf.select(cfg, key, throw_on_missing=False)
    return f"'{key}=[...]'" if isinstance(value, ListConfig) else f"{key}=..."
