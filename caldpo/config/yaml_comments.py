"""Read units and meanings of keys from the comments of the yamls, for messages about bad values."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from caldpo.config.conf_dir import conf_dir

_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):(?P<rest>.*)")
_COMMENT = re.compile(r"(?:^|\s)#\s*(?P<text>.*)")


def meaning(key: str, target: str | None) -> str | None:
    """Read the comment on a dotted key, up to its first semicolon; None where no yaml has it.

    Of several files with the key, one that names ``target``, the ``_target_`` of its section, knows it best, and then
    that of what all options share, ``base.yaml``.
    """
    group, _, inner = key.partition(".")
    options = sorted((conf_dir() / group).glob("*.yaml"), key=lambda file: (file.stem != "base", file.stem))
    files = options if inner else [conf_dir() / "train.yaml"]
    texts: dict[bool, str] = {}
    for targets, comments in map(_comments, files):
        # with its group where the file is of the package _global_
        if text := comments.get(key) or comments.get(inner):
            texts.setdefault(target in targets, text)
    return texts.get(True, texts.get(False, "")).split(";")[0].strip() or None


@functools.cache
def _comments(file: Path) -> tuple[set[str], dict[str, str]]:
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
    return targets, comments
