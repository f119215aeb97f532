"""Folders that are written into beside a run's own: the command says where, and never the files of a run.

A run's folder may come from other hands. What is kept in a cache is named after what determines it, so that another
folder changes no result. No heavy imports.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from caldpo.errors import CaldpoError
from caldpo.utils.yaml_io import flatten

CACHE = "outputs/cache"
# keys of a run's configuration that name such a folder, and the part of the cache that is theirs
PLACES = {"data.cache": "", "data.source.cache_dir": "", "model.cache": "", "reference.cache": "reference"}


def with_own_caches(config: Mapping[str, Any], cache: str = CACHE) -> tuple[dict[str, Any], dict[str, str]]:
    """A run's configuration with ``cache`` in place of the folders that it names, and what it named otherwise, by key.

    Args:
        config: of a run; sections alone will do. A cache that is switched off (null) stays so.
        cache: folder of all of them.
    """
    own, others = copy.deepcopy(dict(config)), {}
    for key, below in PLACES.items():
        *parts, name = key.split(".")
        section: Any = own
        for part in parts:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(name) is not None:
            ours = str(PurePath(cache, below))
            if section[name] != ours:
                others[key] = str(section[name])
            section[name] = ours
    return own, others


def without_places(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Overrides that a run's folder gives for its own: those that name no such folder, and those that name one.

    Raises:
        CaldpoError: one names it among other values.
    """
    kept, left_out = [], []
    for text in overrides:
        named = _named(text)
        if text.partition("=")[0].lstrip("+~") in named:
            left_out.append(text)
        elif named:
            raise CaldpoError(
                f"names a folder to write into ({', '.join(sorted(named))}), which only the command may",
                key=text.partition("=")[0],
                remedy="type this override again beside resume=",
            )
        else:
            kept.append(text)
    return kept, left_out


def _named(text: str) -> set[str]:
    """The places that an override sets, or may set."""
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError):
        return set()  # refused by whoever reads it next
    return PLACES.keys() & flatten({override.key_or_group: override.value()}).keys()
