"""Read yaml and JSON files of a run within bounds, and flatten them. No heavy imports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_DEEPEST = 100  # configurations have 5 or so; libyaml's composer dies of some ten thousand, and the process with it
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there


def read_yaml(path: Path) -> Any:
    """Read a yaml file that a run has written, as plain values.

    Aliases are refused, with which a small file can stand for an endless one; no run writes any.

    Raises:
        ValueError: it is no such yaml; says why on one line.
    """
    return parse_yaml(path.read_bytes().decode("utf-8", errors="strict"))


def parse_yaml(text: str) -> Any:
    """Parse the text of a yaml file as :func:`read_yaml`."""
    try:
        _require_bounded(text)
        return yaml.load(text, SAFE_LOADER)
    except (ValueError, yaml.YAMLError) as error:
        if "maximum nesting depth" in str(error):  # libyaml's own bound, since 0.2.6, which it meets reading ahead
            raise ValueError(f"it is nested more than {_DEEPEST} deep") from error
        raise ValueError(" ".join(str(error).split())) from error
    except (LookupError, TypeError, AttributeError, OverflowError) as error:  # of PyYAML's constructors: `!!bool x`
        raise ValueError("a value is not what its tag says") from error


def read_json(path: Path) -> Any:
    """Read a JSON file, or raise ValueError.

    Halves of surrogate pairs, which JSON can hold and neither a terminal nor a report can show, become ``?``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def flatten(tree: Any, place: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to ``{"loss.beta": 0.1}``; lists and empty mappings are leaves."""
    if not isinstance(tree, Mapping) or (not tree and place):
        return {place: tree} if place else {}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flatten(branch, f"{place}.{name}" if place else str(name)).items()
    }


def _require_bounded(text: str) -> None:
    """Check nesting and aliases on the file's events, before anything is built of them."""
    depth = 0
    for event in yaml.parse(text, SAFE_LOADER):
        place = f"line {event.start_mark.line + 1}" if event.start_mark else "it"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{place} refers to another part of the file (an alias)")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"{place} is nested more than {_DEEPEST} deep")


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts in a value, without the keys of its mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)
