"""Read the yaml files of many runs. Most parts of them are the same in all runs: each distinct part is parsed once."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caldpo.utils.yaml_io import flatten, parse_yaml

_SECTION = re.compile(r"^(?=[A-Za-z_]\w*:)", re.MULTILINE)  # where a top-level key begins
# as Hydra writes them
_JOB_NUMBER = re.compile(r"^  job:\n(?:    .*\n)*?    num: (0|[1-9]\d*)$", re.MULTILINE)
_CHOICES = re.compile(r"^  runtime:\n(?:    .*\n)*?    choices:\n((?:      .*\n)+)", re.MULTILINE)


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration, flat (``loss.beta``). Its values are shared between runs: they are not to be changed.

    Raises:
        OSError, ValueError: it cannot be read, or is no yaml.
    """
    text = path.read_bytes().decode("utf-8")
    sections = [_section(section) for section in _SECTION.split(text) if section]
    names = {section[0] for section in sections if section}
    if len(names) < len(sections):  # not as Hydra writes it
        return flatten(parse_yaml(text))
    return {key: value for section in sections if section for key, value in section[1].items()}


def read_job(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """Read from ``hydra.yaml`` a run's number in its sweep and the option of each config group.

    Of the rest, most of the file, nothing is looked at.

    Raises:
        OSError, ValueError: it cannot be read, or is no yaml.
    """
    text = path.read_bytes().decode("utf-8")
    number, choices = _JOB_NUMBER.search(text), _CHOICES.search(text)
    if number and choices and (section := _parsed(choices[1])) is not None:
        return int(number[1]), section
    hydra = _mapping(parse_yaml(text), "hydra")
    return _mapping(hydra, "job").get("num"), _mapping(_mapping(hydra, "runtime"), "choices")


@functools.lru_cache(maxsize=4096)
def _section(text: str) -> tuple[str, Mapping[str, Any]] | None:
    """Parse the section of one top-level key: the key, and the section flat; None where it is no section by itself."""
    content = _parsed(text)
    return (next(iter(content)), flatten(content)) if content and len(content) == 1 else None


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Mapping[str, Any] | None:
    try:
        content = parse_yaml(text)
    except ValueError:  # the whole file says what is wrong
        return None
    return content if isinstance(content, Mapping) else None


def _mapping(tree: Any, key: str) -> Mapping[str, Any]:
    branch = tree.get(key) if isinstance(tree, Mapping) else None
    return branch if isinstance(branch, Mapping) else {}
