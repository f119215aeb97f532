"""Find the names of LM Eval's tasks, and index only the wanted ones.

LM Eval parses 14,000 yaml files to learn its own names, which takes 15 seconds or longer. Searching for the lines with
a name takes two seconds, and LM Eval then reads only the folders of the wanted tasks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from caldpo.config.did_you_mean import suggest
from caldpo.errors import CaldpoError
from caldpo.utils.yaml_io import SAFE_LOADER

# the keys at the left edge that name a task, with the items of a list in the lines below
_NAMING = re.compile(
    rb"""^["']?(?:task|group|tag|include)["']?[ \t]*:.*(?:\n[ \t]*(?:-.*|\#.*)?(?=\n|\Z))*""", re.MULTILINE
)
_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}  # as LM Eval does


@functools.cache
def names(folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """Map names of tasks and groups to the first file that defines them, and tags to all files that have them."""
    defined: dict[str, list[Path]] = {}
    tagged: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        if not _SKIPPED.isdisjoint(path.parts):
            continue
        for name in (_naming(path).get("task"), _naming(path).get("group")):
            if isinstance(name, str):
                defined.setdefault(name, [path])
        for tag in _tags(path):
            tagged.setdefault(tag, []).append(path)
    return {name: tuple(paths) for name, paths in (tagged | defined).items()}


@functools.cache
def _naming(path: Path) -> Mapping[str, Any]:
    """Read the naming keys of a file; none of one that cannot be read, which LM Eval reports if that task runs."""
    try:
        lines = b"\n".join(match[0] for match in _NAMING.finditer(path.read_bytes()))
        keys = yaml.load(lines, SAFE_LOADER)
    except (OSError, yaml.YAMLError):
        return {}
    return keys if isinstance(keys, dict) else {}


def _tags(path: Path) -> list[str]:
    """List the tags of a file, its own or those of the files it includes."""
    keys = _naming(path)
    if "tag" in keys:
        return _texts(keys["tag"])
    return [tag for include in _texts(keys.get("include")) for tag in _tags((path.parent / include).resolve())]


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def require_names(wanted: Iterable[str], own: Path | None, shipped: Path, also: Iterable[str]) -> None:
    """Refuse names of tasks, groups or tags that are in neither folder; ``also`` are further names to suggest.

    ``shipped``, which is LM Eval's, is read only for names that are not the user's own.

    Raises:
        CaldpoError: a name is unknown.
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
    """Build LM Eval's index of the user's own tasks, the wanted ones (known names) and all that those consist of.

    The tasks of the folder ``own`` take precedence over those of ``shipped``.
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
