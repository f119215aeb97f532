"""Foreign text on its way into a document: names, errors and overrides are whatever a run's folder holds.

The one place where such text becomes part of Markdown, of a command to copy, or of a spreadsheet. No heavy imports.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn")  # controls, direction marks, halves of surrogate pairs, unassigned
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_JOINERS = "\u200c\u200d"  # belong to words of some scripts, and to emoji
_SPECIAL = re.compile(r"[\\`*<$]|\](?=[(\[:])|~(?=~)|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
_BEGINS_BLOCK = re.compile(r"(?:#+|>|[-+=]|\d+[.)])(?=\s)")
_SHORT = {"\\": "\\", "'": "'", "\n": "n", "\r": "r", "\t": "t"}  # in $'...'
_FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes for the beginning of a formula


class Markdown(str):
    """Text that is Markdown already; any other is escaped where it enters a table."""

    __slots__ = ()


def one_line(text: object) -> str:
    """The text on one line, without characters that a terminal, a browser or a font acts on in place of showing."""
    line = " ".join(str(text).split())
    return "".join(c if c in _JOINERS or unicodedata.category(c) not in _UNSEEN else _REPLACEMENT for c in line)


def plain(text: object) -> Markdown:
    """Text that a Markdown reader shows as it is written: no HTML, link, code or emphasis comes of it."""
    if isinstance(text, Markdown):
        return text
    escaped = _SPECIAL.sub(_escape, one_line(text))
    begun = _BEGINS_BLOCK.match(escaped)
    return Markdown(f"{escaped[: begun.end() - 1]}\\{escaped[begun.end() - 1 :]}" if begun else escaped)


def code(text: object) -> Markdown:
    """The same in a code span; plain where it has what would end one."""
    line = one_line(text)
    if not line or "`" in line or "\\|" in line or line.endswith("\\"):
        return plain(line)
    return Markdown(f"`{line}`")


def cell(text: object) -> str:
    """A cell of a Markdown table."""
    return plain(text).replace("|", "\\|")


def command(arguments: Iterable[str]) -> str:
    """A command on one line, quoted for bash and zsh; line breaks stand as ``\\n`` in ``$'...'``."""
    return " ".join(_quoted(str(argument)) for argument in arguments)


def shell_block(lines: Sequence[str]) -> Markdown:
    """Commands to copy, in a fence that nothing in them ends."""
    body = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return Markdown(f"{fence}sh\n{body}\n{fence}")


def spreadsheet_cell(value: Any) -> Any:
    """A cell of a csv file: numbers as they are, text on one line and never the beginning of a formula."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.startswith(_FORMULA) else line


def _escape(found: re.Match[str]) -> str:
    return {"<": "&lt;", "&": "&amp;"}.get(found[0], f"\\{found[0]}")


def _quoted(argument: str) -> str:
    if argument.isprintable():
        return shlex.quote(argument)
    return f"$'{''.join(map(_ansi_c, argument))}'"


def _ansi_c(character: str) -> str:
    if character in _SHORT:
        return f"\\{_SHORT[character]}"
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that was no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return f"\\U{ord(character):08x}"
