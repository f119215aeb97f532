"""Find the names of LM Eval's tasks, and index the wanted ones alone.

LM Eval parses 14,000 yaml files to learn its own names, which takes 15 seconds or longer. Searching for the lines with
a name takes two seconds, and LM Eval then reads the folders of the wanted tasks alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from caldpo.config.did_you_mean import suggest
from caldpo.errors import CaldpoError

_NAME = rb"""["']?([^\s"'#,{}\[\]]+)"""
_DEFINED = re.compile(rb"""^["']?(?:task|group)["']?[ \t]*:[ \t]*""" + _NAME, re.MULTILINE)
_ITEM = re.compile(rb"-[ \t]*" + _NAME)
_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}  # as LM Eval does


def _key(name: bytes) -> re.Pattern[bytes]:
    """Match a key at the left edge with one value on its line, or several in lines below it."""
    lines = rb"""[ \t]*(?:#[^\n]*)?((?:\n[ \t]*-[^\n]*)+))"""
    return re.compile(rb"""^["']?""" + name + rb"""["']?[ \t]*:[ \t]*(?:""" + _NAME + rb"|" + lines, re.MULTILINE)


_TAG, _INCLUDE = _key(b"tag"), _key(b"include")


@functools.cache
def names(folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """Map names of tasks and groups to the first file that defines them, and tags to all files that have them."""
    defined: dict[str, list[Path]] = {}
    tagged: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        if not _SKIPPED.isdisjoint(path.parts):
            continue
        for name in _DEFINED.findall(path.read_bytes()):
            defined.setdefault(name.decode(), [path])
        for tag in _tags(path):
            tagged.setdefault(tag, []).append(path)
    return {name: tuple(paths) for name, paths in (tagged | defined).items()}


@functools.cache
def _tags(path: Path) -> tuple[str, ...]:
    """Return the tags of a file, its own or those of the files it includes."""
    try:
        text = path.read_bytes()
    except OSError:  # a broken include, which LM Eval reports if that task runs
        return ()
    if _TAG.search(text):
        return _values(_TAG, text)
    return tuple(tag for include in _values(_INCLUDE, text) for tag in _tags((path.parent / include).resolve()))


def _values(key: re.Pattern[bytes], text: bytes) -> tuple[str, ...]:
    values = [name for one, several in key.findall(text) for name in ([one] if one else _ITEM.findall(several))]
    return tuple(name.decode() for name in values)


def require_names(wanted: Iterable[str], own: Path | None, shipped: Path, also: Iterable[str]) -> None:
    """Refuse unknown names.

    Args:
        wanted: names of tasks, groups or tags.
        own: folder of the user's own tasks.
        shipped: folder of LM Eval's tasks, read only for names that are not the user's own.
        also: further names to suggest.

    Raises:
        CaldpoError: a name is in neither folder.
    """
    own_names = names(own) if own else {}
    for name in wanted:
        if name in own_names or name in names(shipped):
            continue
        known = [*also, *own_names, *names(shipped)]
        raise CaldpoError(
            f"no such task{suggest(name, known)}",
            key="leaderboard.tasks",
            value=name,
            remedy=f"choose among the {len(known):,} names of LM Eval (python -m lm_eval ls tasks), or name the folder"
            " of your own tasks with leaderboard.include_path",
        )


def task_manager(wanted: Iterable[str], own: Path | None, shipped: Path) -> Any:
    """Build LM Eval's index of the user's own tasks, the wanted ones and all that those consist of.

    Args:
        wanted: known names (:func:`require_names`).
        own: folder of the user's own tasks; they take precedence.
        shipped: folder of LM Eval's tasks.
    """
    from lm_eval.tasks import TaskManager

    own_names = names(own) if own else {}
    folders: set[Path] = set()
    missing = {name for name in wanted if name not in own_names}
    while True:
        folders |= {path.parent for name in missing for path in names(shipped).get(name, ())}
        # a folder is read with all below it; the user's own comes last and wins
        outermost = [folder for folder in sorted(folders) if folders.isdisjoint(folder.parents)]
        manager = TaskManager(include_path=[*outermost, *([own] if own else [])], include_defaults=False)
        before, missing = missing, {name for name in _members(manager) if name not in manager.task_index}
        missing = {name for name in missing if name in names(shipped)} - before  # LM Eval reports unknown ones
        if not missing:
            return manager


def _members(manager: Any) -> set[str]:
    """Return the names that the groups of an index consist of."""
    members: set[str] = set()
    for entry in manager.task_index.values():
        parts = (entry.cfg or {}).get("task")
        for member in parts if isinstance(parts, list) else ():
            name = member.get("group", member.get("task")) if isinstance(member, Mapping) else member
            if isinstance(name, str):
                members.add(name)
    return members
