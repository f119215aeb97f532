"""Explain an override of an unknown key: what is meant by it, and what to write."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from caldpo.config.composer import FAULTS, Composer
from caldpo.config.did_you_mean import (
    KEYS,
    as_hint,
    has_key,
    known_or_near,
    meant_keys,
    meant_value,
    nearest,
    other_names,
    section_at,
)
from caldpo.config.lightning_keys import PLACES, REFUSED
from caldpo.config.validation import Problem
from caldpo.security.secrets import redact_text
from caldpo.utils.file_names import is_there

_DATA_FILE = re.compile(r"\.(jsonl?|csv|parquet)(\.gz)?$")
# Options that bring the keys which are most often set without them.
_BRINGING_KEYS = ("adapter=lora", "model=hf", "loss=dpo")
_MAX_VALUE = 100  # characters of a value that a remedy repeats
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def unheard_of(composer: Composer, overrides: Sequence[str]) -> dict[str, Problem]:
    """Explain, by their text, overrides of keys that are in no file of the configuration, nor in what it composes.

    With a search path of the user's own, which Hydra follows while it composes, that is for Hydra to tell.
    """
    if any(text.lstrip("+~").startswith("hydra.searchpath") for text in overrides):
        return {}
    suspects = {
        override.input_line or "": override
        for override in composer.parse(overrides)
        if (key := override.key_or_group) and (override.input_line or "").startswith(f"{key}=")
        if not override.is_sweep_override() and composer.is_in_no_file(key)
    }
    if not suspects:
        return {}
    others = [text for text in overrides if text not in suspects]
    try:
        cfg = composer.compose(others)
    except FAULTS:
        return {}
    unknown = {text: suspect for text, suspect in suspects.items() if not has_key(cfg, suspect.key_or_group)}
    return {text: explain_unknown_key(override, composer, others) for text, override in unknown.items()}


def explain_unknown_key(override: Override, composer: Composer, others: list[str]) -> Problem:
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
    near = None if meant else nearest(name, choices)
    if parent in PLACES and name in REFUSED:
        reason, remedy = REFUSED[name]
        return Problem(key, None, f"Lightning's argument {reason}", remedy)
    # in a sweep over a group, say which of its options lacks the key
    option = next((text for text in reversed(others) if parent and text.split("=")[0] == parent), None)
    wrong = f"unknown key{f' with {option}' if option else ''}"
    if not meant and (not near or parent or key in KEYS):
        bringing = _bringing_option(key, cfg, composer, others)
        if bringing is not None:
            return _key_of_option(override, key, wrong, *bringing, others)
    if meant:
        return Problem(key, None, f"{wrong}{as_hint(key, *meant)}", _assignment(override, meant[0], cfg, composer))
    where = option or parent or "the top level"
    listed = f"the keys of {where} are {', '.join(sorted(set(choices)))}" if choices else f"{where} has no keys"
    if near:
        listed = f"{_assignment(override, f'{parent}.{near}' if parent else near, cfg, composer)}; {listed}"
    return Problem(key, None, f"{wrong}{as_hint(key, near)}", listed)


def _bringing_option(key: str, cfg: DictConfig, composer: Composer, others: list[str]) -> tuple[str, str] | None:
    """Find an option that brings a key, or one that is meant by it; return option and key."""
    if all(composer.is_in_no_file(name) for name in other_names(key)):
        return None
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


def _key_of_option(override: Override, key: str, wrong: str, option: str, brought: str, others: list[str]) -> Problem:
    """Explain a key that ``option`` would bring under the name ``brought``."""
    chosen = next((text for text in others if text.split("=")[0] == option.split("=")[0]), None)
    remedy = f"write {option} {_written(brought, _value_for(override, brought))}"
    remedy += f", in place of {redact_text(chosen)}" if chosen else ""
    return Problem(key, None, wrong if brought == key else f"{wrong}{as_hint(key, brought)}", remedy)


def _assignment(override: Override, key: str, cfg: DictConfig, composer: Composer) -> str:
    """Tell to write ``key`` with the value of an override of another name."""
    value = _value_for(override, key)
    if options := composer.options(key):
        if problem := named_in_place_of_option(f"{key}={value}"):
            return problem.remedy or ""
        value = known if (known := known_or_near(value, options)) else "..."
    elif isinstance(OmegaConf.select(cfg, key, throw_on_missing=False), ListConfig) and not value.startswith("["):
        value = f"[{value}]"
    return f"write {_written(key, value)}"


def _value_for(override: Override, key: str) -> str:
    """Return the text of the value of an override, for the ``key`` that is meant by its own; ``...`` for none."""
    _, sign, value = redact_text(override.input_line or "").partition("=")
    plain = sign and isinstance(override.value(), str | int | float | list | None)
    return meant_value(override.key_or_group, value) if plain and value and len(value) <= _MAX_VALUE else "..."


def _written(key: str, value: str) -> str:
    return shlex.quote(f"{key}={value}")


def named_in_place_of_option(text: str) -> Problem | None:
    """Explain a model or data of a person's own that is named where an option belongs."""
    group, _, name = text.partition("=")
    if group == "model" and ("/" in name or is_there(name)):
        remedy = f"write model=hf model.path={redact_text(name)}"
        return Problem(group, redact_text(name), "is not an option, but a model of the hub or a folder", remedy)
    is_local = _DATA_FILE.search(name) or is_there(name)
    if group == "data" and ("/" in name or is_local):
        on_hub = _HUB_ID.fullmatch(name) and not is_local
        what, key = ("a data set of the hub", "data=hub data.path") if on_hub else ("a path", "data=local data.train")
        return Problem(group, redact_text(name), f"is not an option, but {what}", f"write {key}={redact_text(name)}")
    return None
