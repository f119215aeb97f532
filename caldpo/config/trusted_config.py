"""Refuse configurations of foreign runs that would build other than the project's own classes.

A run's folder may come from other hands. Its ``config.yaml`` names classes that are built and values that are used, so
it is held against the configurations that come with the project before anything of it is built.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep

from caldpo.config.conf_dir import conf_dir, groups_of_defaults
from caldpo.config.overrides import parse_overrides
from caldpo.errors import CaldpoError
from caldpo.security.secrets import redact_text
from caldpo.utils.yaml_io import read_yaml

TRUST = "if you know that code and want it run, add allow_untrusted_code=true"
_PRIMARY = "train.yaml"  # its defaults list names the groups that a training run is composed of
_START_KEYS = ("resume", "replay", "allow_untrusted_code")  # keys that no run keeps
_PACKAGE = re.compile(r"\A(?:#.*\n)*?# @package (\S+)")  # where Hydra puts the content of a file
SEVERAL = ("modifier", "logger")  # groups of a training of which several options are chosen at once, by a list


def require_own_code(config: Mapping[str, Any], sections: Iterable[str], file: Path) -> None:
    """Refuse what no configuration of the project contains, in the sections of a run that are going to be built.

    Raises:
        CaldpoError: about ``file``: a class that the project's configurations do not name at this place, another of
            Hydra's keys (which pass on what no signature checks), code that comes with a model, or a reference to the
            reader's environment.
    """
    for place, target in _foreign_targets(config, sections):
        raise CaldpoError(
            f"{place} is built by {target}, which no configuration of caldpo builds there", key=str(file), remedy=TRUST
        )
    for place, value in _leaves_of(config, sections):
        key = place.rpartition(".")[2]
        if key.startswith("_") and key != "_target_":
            raise CaldpoError("is no key that a run writes", key=f"{file}: {place}", remedy=TRUST)
        if key == "trust_remote_code" and value:
            wrong = "the model of this run brings Python code of its own"
            raise CaldpoError(wrong, key=f"{file}: {place}", remedy=TRUST)
        if isinstance(value, str) and "${" in value and key != "_target_":
            wrong = "refers to something outside the run, where a run writes values"
            raise CaldpoError(wrong, key=f"{file}: {place}", value=value, remedy="write the value itself")


def announce_foreign(config: Mapping[str, Any], sections: Iterable[str], file: Path) -> None:
    """Print what a trusted configuration builds that :func:`require_own_code` would refuse."""
    for place, target in _foreign_targets(config, sections):
        print(f"allow_untrusted_code: {file} has {place} built by {target}", file=sys.stderr)


def require_plain_overrides(overrides: Iterable[str], file: Path) -> None:
    """Refuse overrides recorded in a run's file that do more than set values and choose options.

    Hydra's own keys are never a run's: they name callbacks, loggers and folders that Hydra makes before anything of the
    configuration can be looked at.

    Raises:
        CaldpoError: about ``file``: a key of Hydra's or one that says whom to trust, a class, a reference to the
            reader's environment, a path where an option has its name, or text that Hydra cannot read.
    """
    for text in overrides:
        if why := _more_than_a_value(text):
            raise CaldpoError(f"{redact_text(text)}: {why}", key=str(file), remedy=TRUST)


def _foreign_targets(config: Mapping[str, Any], sections: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each place whose class no configuration of the project builds there, with that class."""
    for key, value in _leaves_of(config, sections):
        place = key.removesuffix("._target_")
        if place != key and str(value) not in own_targets().get(place, ()):
            yield place, str(value)


def _more_than_a_value(text: str) -> str | None:
    override = next(iter(parse_overrides(None, [text])), None)
    if override is None:
        return "is no override"
    key, package = override.key_or_group, override.package or ""
    if any(re.split("[./]", name)[0] == "hydra" for name in (key, package)) or package.startswith("_"):
        return "sets what is Hydra's own"
    if key in _START_KEYS:
        return "is set only on the command line, not by the files of a run"
    if any(part.startswith("_") for part in re.split("[./]", key)) or _holds_special(override.value()):
        return "names a class, or another key of Hydra's"
    if "${" in text.replace("\\", "") or "${" in str(override.value()):  # Hydra takes escapes away
        return "refers to something outside the run, where a run writes values"
    value = override.value()
    choices = value.list if isinstance(value, ChoiceSweep) else [value]
    if "." not in key and any(isinstance(choice, list | dict) and not _names(key, choice) for choice in choices):
        return "chooses options by a list"
    if "/" in key or (".." in PurePath(str(value)).parts and "." not in key):
        return "chooses an option by a path"
    return None


def _names(key: str, choice: Any) -> bool:
    """Tell whether a list names options of a group that takes several, none of them by a path."""
    return key in SEVERAL and isinstance(choice, list) and all(re.fullmatch(r"\w+", str(name)) for name in choice)


def _holds_special(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(str(key).startswith("_") or _holds_special(item) for key, item in value.items())
    if isinstance(value, ChoiceSweep):
        return _holds_special(value.list)
    return isinstance(value, list | tuple) and any(map(_holds_special, value))


@functools.cache
def own_targets() -> Mapping[str, set[str]]:
    """Collect the ``_target_`` of each place (``data``, ``data.source``) in the project's own yamls of a training.

    All groups are read, since a model or an experiment may set other sections than its own.
    """
    targets: dict[str, set[str]] = {}
    for group in groups_of_defaults(read_yaml(conf_dir() / _PRIMARY)):
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            header = _PACKAGE.search(path.read_text(encoding="utf-8"))
            package = header[1] if header else group
            for place, value in _leaves(read_yaml(path), "" if package == "_global_" else package):
                if place.endswith("._target_"):
                    targets.setdefault(place.removesuffix("._target_"), set()).add(str(value))
    return targets


def _leaves_of(config: Mapping[str, Any], sections: Iterable[str]) -> Iterator[tuple[str, Any]]:
    return (leaf for section in sections for leaf in _leaves(config.get(section), section))


def _leaves(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield every plain value with its dotted key, and every container under one of Hydra's keys as it is."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            below = f"{place}.{key}" if place else str(key)
            if str(key).startswith("_"):
                yield below, value
            else:
                yield from _leaves(value, below)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _leaves(value, f"{place}[{number}]")
    else:
        yield place, node
