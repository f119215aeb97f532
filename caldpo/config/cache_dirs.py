"""Cache folders of a command, which never come from the files of a run that it reads: those may be of other hands.

What is kept in a cache is named after what determines it, so that another folder changes no result. No heavy imports.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from caldpo.config.overrides import parse_overrides
from caldpo.errors import CaldpoError
from caldpo.utils.yaml_io import flatten

CACHE = "outputs/cache"
# keys of a run's configuration that name such a folder, and the part of the cache that is theirs
PLACES = {"data.cache": "", "data.source.cache_dir": "", "model.cache": "", "reference.cache": "reference"}


def with_cache_dirs(config: Mapping[str, Any], cache: str = CACHE) -> tuple[dict[str, Any], dict[str, str]]:
    """Replace the cache folders of a run's configuration by ``cache``; return it with what was replaced, by key.

    A cache that is switched off (null) stays so.
    """
    changed, replaced = copy.deepcopy(dict(config)), {}
    for key, below in PLACES.items():
        *parts, name = key.split(".")
        section: Any = changed
        for part in parts:
            section = section.get(part) if isinstance(section, dict) else None
        cache_dir = str(PurePath(cache, below))
        if isinstance(section, dict) and section.get(name) not in (None, cache_dir):
            replaced[key] = str(section[name])
            section[name] = cache_dir
    return changed, replaced


def without_cache_dirs(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split recorded overrides into those without and those with a cache folder; refuse one among other values."""
    without, with_cache = [], []
    for text in overrides:
        named = _named(text)
        if text.partition("=")[0].lstrip("+~") in named:
            with_cache.append(text)
        elif named:
            raise CaldpoError(
                f"names a folder to write into ({', '.join(sorted(named))}), which only the command may",
                key=text.partition("=")[0],
                remedy="type this override again beside resume=",
            )
        else:
            without.append(text)
    return without, with_cache


def _named(text: str) -> set[str]:
    """List the cache keys that an override sets, or may set."""
    overrides = parse_overrides(None, [text])  # one that cannot be read is refused by who reads it next
    return {key for o in overrides for key in flatten({o.key_or_group: o.value()}) if key in PLACES}
