"""Read units and meanings of keys from the comments of the yamls, for messages about bad values."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from caldpo.config.conf_dir import conf_dir

_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):(?P<rest>.*)")
_COMMENT = re.compile(r"(?:^|\s)#\s*(?P<text>.*)")


def meaning(key: str, target: str | None) -> str | None:
    """Read the comment on a key, up to its first semicolon; None where no yaml has it.

    Args:
        key: dotted, as on the command line.
        target: ``_target_`` of the section that it stands in: of several files with the key, that with this target
            knows it best.
    """
    comments = [(target is not None and target in targets, words) for targets, words in _comments_on(key)]
    best = max(comments, default=(False, ""), key=lambda both: both[0])[1]
    return best.split(";")[0].strip() or None


def _comments_on(key: str) -> Iterator[tuple[frozenset[str], str]]:
    """Yield the comments on a key, each with the targets that its file names."""
    group, _, inner = key.partition(".")
    files = [*sorted((conf_dir() / group).glob("*.yaml"))] if inner else [conf_dir() / "train.yaml"]
    for file in files:
        for name in (key, inner):  # the former where the file is of the package _global_
            if name and (words := _comments(file)[1].get(name)):
                yield _comments(file)[0], words


@functools.cache
def _comments(file: Path) -> tuple[frozenset[str], dict[str, str]]:
    """Read the targets in a file, and the comment on each of its dotted keys: beside it, or on the lines above."""
    targets: set[str] = set()
    comments: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("#"):
            above.append(line.strip("# "))
            continue
        if match := _KEY.match(line):
            indent, rest = len(match["indent"]), match["rest"]
            path = [*(outer for outer in path if outer[0] < indent), (indent, match["key"])]
            beside = _COMMENT.search(rest)
            if match["key"] == "_target_":
                targets.add(rest.split("#")[0].strip())
            elif words := beside["text"] if beside else " ".join(above):
                comments[".".join(name for _, name in path)] = words
        above = []
    return frozenset(targets), comments
