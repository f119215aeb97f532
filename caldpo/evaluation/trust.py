"""What a run's own configuration may make a reader do: build the project's models, references and data, and no more.

A run's folder may come from other hands. Its ``config.yaml`` names classes that are built and values that are used, so
it is held against the configurations that come with the project before anything of it is built.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from caldpo.config.paths import conf_dir
from caldpo.errors import CaldpoError

TRUST = "if you know that code and want it run, add trust_code=true"


def require_own_code(config: Mapping[str, Any], sections: tuple[str, ...], file: Path) -> None:
    """Refuse whatever a configuration of the project would not say.

    Args:
        config: a run's.
        sections: the ones that are going to be built.
        file: where it was read.

    Raises:
        CaldpoError: a class that the project's configurations do not name at this place, another of Hydra's keys (which
            pass on what no signature checks), code that comes with a model, or a reference to the reader's environment.
    """
    for section in sections:
        for place, value in _leaves(config.get(section), section):
            key = place.rpartition(".")[2]
            if key == "_target_":
                _require_known(place.removesuffix("._target_"), str(value), file)
            elif key.startswith("_"):
                raise CaldpoError("is no key that a run writes", key=f"{file}: {place}", remedy=TRUST)
            elif key == "trust_remote_code" and value:
                raise CaldpoError(
                    "the model of this run brings Python code of its own", key=f"{file}: {place}", remedy=TRUST
                )
            elif isinstance(value, str) and "${" in value:
                raise CaldpoError(
                    "refers to something outside the run, where a run writes values",
                    key=f"{file}: {place}",
                    value=value,
                    remedy="write the value itself",
                )


def _require_known(place: str, target: str, file: Path) -> None:
    known = own_targets(place.partition(".")[0]).get(place, frozenset())
    if target not in known:
        raise CaldpoError(
            f"{place} is built by {target}, which no configuration of caldpo builds there", key=str(file), remedy=TRUST
        )


@functools.cache
def own_targets(section: str) -> Mapping[str, frozenset[str]]:
    """The ``_target_`` of each place of a section (``data``, ``data.source``) in the project's own configurations."""
    found: dict[str, set[str]] = {}
    for path in (conf_dir() / section).glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        # a model's yaml sets other sections as well, and has its own under its name
        for place, value in _leaves(content.get(section, content), section):
            if place.endswith("._target_"):
                found.setdefault(place.removesuffix("._target_"), set()).add(str(value))
    return {place: frozenset(targets) for place, targets in found.items()}


def _leaves(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every plain value with its dotted key, and every container under one of Hydra's keys as it is."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            below = f"{place}.{key}"
            if str(key).startswith("_"):
                yield below, value
            else:
                yield from _leaves(value, below)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _leaves(value, f"{place}[{number}]")
    else:
        yield place, node
