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

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from caldpo.config.conf_dir import conf_dir
from caldpo.errors import CaldpoError
from caldpo.security.secrets import redact_text

TRUST = "if you know that code and want it run, add allow_untrusted_code=true"
_PRIMARY = "train.yaml"  # its defaults list names the groups that a training run is composed of
_ROOT = "_global_"
_START_KEYS = ("resume", "replay", "allow_untrusted_code")  # keys that no run keeps
_PACKAGE = "# @package "


def require_own_code(config: Mapping[str, Any], sections: Iterable[str], file: Path, remedy: str = TRUST) -> None:
    """Refuse what no configuration of the project contains: foreign classes, model code, references outside.

    Args:
        config: a run's.
        sections: the ones that are going to be built.
        file: where it was read.
        remedy: what somebody does who trusts the folder.

    Raises:
        CaldpoError: a class that the project's configurations do not name at this place, another of Hydra's keys (which
            pass on what no signature checks), code that comes with a model, or a reference to the reader's environment.
    """
    for section in sections:
        for place, value in _leaves(config.get(section), section):
            key = place.rpartition(".")[2]
            if key == "_target_":
                _require_known(place.removesuffix("._target_"), str(value), file, remedy)
            elif key.startswith("_"):
                raise CaldpoError("is no key that a run writes", key=f"{file}: {place}", remedy=remedy)
            elif key == "trust_remote_code" and value:
                raise CaldpoError(
                    "the model of this run brings Python code of its own", key=f"{file}: {place}", remedy=remedy
                )
            elif isinstance(value, str) and "${" in value:
                raise CaldpoError(
                    "refers to something outside the run, where a run writes values",
                    key=f"{file}: {place}",
                    value=value,
                    remedy="write the value itself",
                )


def require_plain_overrides(overrides: Iterable[str], file: Path, remedy: str = TRUST) -> None:
    """Refuse recorded overrides that do more than set values and choose options.

    Hydra's own keys are never a run's: they name callbacks, loggers and folders that Hydra makes before anything of the
    configuration can be looked at.

    Args:
        overrides: as they were typed once.
        file: where they were read.
        remedy: what somebody does who trusts the folder.

    Raises:
        CaldpoError: a key of Hydra's or one that says whom to trust, a class, a reference to the reader's environment,
            a path where an option has its name, or text that Hydra cannot read.
    """
    parser = OverridesParser.create()
    for text in overrides:
        why = _more_than_a_value(parser, text)
        if why:
            raise CaldpoError(f"{redact_text(text)}: {why}", key=str(file), remedy=remedy)


def _more_than_a_value(parser: OverridesParser, text: str) -> str | None:
    try:
        override = parser.parse_override(text)
    except (HydraException, ValueError):  # the second for a number of thousands of digits
        return "is no override"
    key, package = override.key_or_group, override.package or ""
    if any(re.split("[./]", name)[0] == "hydra" for name in (key, package)) or package.startswith("_"):
        return "sets what is Hydra's own"
    if key in _START_KEYS:
        return "is set on the command line alone, not by the files of a run"
    if any(part.startswith("_") for part in re.split("[./]", key)) or _holds_special(override.value()):
        return "names a class, or another key of Hydra's"
    if "${" in text.replace("\\", "") or "${" in str(override.value()):  # Hydra takes escapes away
        return "refers to something outside the run, where a run writes values"
    value = override.value()
    choices = value.list if isinstance(value, ChoiceSweep) else [value]
    if "." not in key and any(isinstance(choice, list | dict) for choice in choices):
        return "chooses options by a list"
    if "/" in key or (".." in PurePath(str(value)).parts and "." not in key):
        return "chooses an option by a path"
    return None


def _holds_special(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(str(key).startswith("_") or _holds_special(item) for key, item in value.items())
    if isinstance(value, ChoiceSweep):
        return _holds_special(value.list)
    return isinstance(value, list | tuple) and any(map(_holds_special, value))


def announce_foreign(config: Mapping[str, Any], sections: Iterable[str], file: Path) -> None:
    """Print what a trusted configuration builds that :func:`require_own_code` would refuse."""
    for section in sections:
        for place, value in _leaves(config.get(section), section):
            built = place.removesuffix("._target_")
            if built != place and str(value) not in own_targets(section).get(built, frozenset()):
                print(f"allow_untrusted_code: {file} has {built} built by {value}", file=sys.stderr)


def _require_known(place: str, target: str, file: Path, remedy: str) -> None:
    known = own_targets(place.partition(".")[0]).get(place, frozenset())
    if target not in known:
        raise CaldpoError(
            f"{place} is built by {target}, which no configuration of caldpo builds there", key=str(file), remedy=remedy
        )


def own_targets(section: str) -> Mapping[str, frozenset[str]]:
    """Collect the ``_target_`` of each place of a section (``data``, ``data.source``) in the project's own yamls.

    All that a training is composed of is read, since a model or an experiment may set other sections than its own.
    """
    within = {place: targets for place, targets in _all_targets().items() if place.partition(".")[0] == section}
    return {place: frozenset(targets) for place, targets in within.items()}


@functools.cache
def _all_targets() -> Mapping[str, set[str]]:
    targets: dict[str, set[str]] = {}
    for group in _groups():
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            package = _package(text) or group
            for place, value in _leaves(yaml.safe_load(text), "" if package == _ROOT else package):
                if place.endswith("._target_"):
                    targets.setdefault(place.removesuffix("._target_"), set()).add(str(value))
    return targets


def _groups() -> list[str]:
    """List the option groups that a training is composed of."""
    defaults = yaml.safe_load((conf_dir() / _PRIMARY).read_text(encoding="utf-8"))["defaults"]
    named = [str(next(iter(entry))) for entry in defaults if isinstance(entry, Mapping)]
    return [name.removeprefix("optional ").removeprefix("override ") for name in named]


def _package(text: str) -> str | None:
    """Read the package header of a yaml file, which tells where Hydra puts its content."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return None
        if line.startswith(_PACKAGE):
            return line.removeprefix(_PACKAGE).strip()
    return None


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
