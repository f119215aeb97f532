"""Names of the harness's tasks, and an index of just those that are wanted.

The harness parses 14,000 yaml files to learn its own names, for a quarter of a minute or longer. Finding the lines that
hold a name takes two seconds, and the harness then has only the folders of the wanted tasks to read.
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
_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}  # as the harness does


def _key(name: bytes) -> re.Pattern[bytes]:
    """A key at the left edge with one value on its line, or several in lines below it."""
    lines = rb"""[ \t]*(?:#[^\n]*)?((?:\n[ \t]*-[^\n]*)+))"""
    return re.compile(rb"""^["']?""" + name + rb"""["']?[ \t]*:[ \t]*(?:""" + _NAME + rb"|" + lines, re.MULTILINE)


_TAG, _INCLUDE = _key(b"tag"), _key(b"include")


@functools.cache
def names(folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """Names of tasks and groups (the first file that defines them), and of tags (all files that bear them)."""
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
    """The tags that a file gives its task, or that it takes over from the files it includes."""
    try:
        text = path.read_bytes()
    except OSError:  # an include that leads nowhere: the harness says so if that task is wanted
        return ()
    if _TAG.search(text):
        return _values(_TAG, text)
    return tuple(tag for include in _values(_INCLUDE, text) for tag in _tags((path.parent / include).resolve()))


def _values(key: re.Pattern[bytes], text: bytes) -> tuple[str, ...]:
    found = [name for one, several in key.findall(text) for name in ([one] if one else _ITEM.findall(several))]
    return tuple(name.decode() for name in found)


def require_names(wanted: Iterable[str], own: Path | None, shipped: Path, also: Iterable[str]) -> None:
    """Refuse names that nobody knows.

    Args:
        wanted: names of tasks, groups or tags of the harness.
        own: folder of the user's own tasks.
        shipped: folder of those that come with the harness; read only for names that are not the user's own.
        also: further names to suggest.

    Raises:
        CaldpoError: a name is in neither.
    """
    mine = names(own) if own else {}
    for name in wanted:
        if name in mine or name in names(shipped):
            continue
        known = [*also, *mine, *names(shipped)]
        raise CaldpoError(
            f"there is no such task{suggest(name, known)}",
            key="leaderboard.tasks",
            value=name,
            remedy=f"choose of the {len(known):,} names of the harness (python -m lm_eval ls tasks), or name the folder"
            " of your own tasks with leaderboard.include_path",
        )


def task_manager(wanted: Iterable[str], own: Path | None, shipped: Path) -> Any:
    """The harness's index of the user's own tasks and of what the wanted ones consist of.

    Args:
        wanted: names that are known (:func:`require_names`).
        own: folder of the user's own tasks; they take precedence.
        shipped: folder of those that come with the harness.
    """
    from lm_eval.tasks import TaskManager

    mine = names(own) if own else {}
    folders: set[Path] = set()
    missing = {name for name in wanted if name not in mine}
    while True:
        folders |= {path.parent for name in missing for path in names(shipped).get(name, ())}
        # A folder is read with all below it; the user's own comes last and wins.
        outermost = [folder for folder in sorted(folders) if folders.isdisjoint(folder.parents)]
        manager = TaskManager(include_path=[*outermost, *([own] if own else [])], include_defaults=False)
        before, missing = missing, {name for name in _members(manager) if name not in manager.task_index}
        # Names that even the harness does not know are its own business.
        missing = {name for name in missing if name in names(shipped)} - before
        if not missing:
            return manager


def _members(manager: Any) -> set[str]:
    """What the groups of an index consist of."""
    found: set[str] = set()
    for entry in manager.task_index.values():
        members = (entry.cfg or {}).get("task")
        for member in members if isinstance(members, list) else ():
            name = member.get("group", member.get("task")) if isinstance(member, Mapping) else member
            if isinstance(name, str):
                found.add(name)
    return found
