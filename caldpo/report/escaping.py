"""Escape text from a run's folder on its way into Markdown, a command to copy, or a spreadsheet. No heavy imports."""

from __future__ import annotations

import functools
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

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
    """Put text on one line, without characters that a terminal, a browser or a font acts on in place of showing."""
    line = " ".join(str(text).split())
    return "".join(c if c in _JOINERS or unicodedata.category(c) not in _UNSEEN else _REPLACEMENT for c in line)


def plain(text: object) -> Markdown:
    """Escape text so that a Markdown reader shows it as it is written: no HTML, link, code or emphasis comes of it."""
    if isinstance(text, Markdown):
        return text
    escaped = _SPECIAL.sub(_escape, one_line(text))
    begun = _BEGINS_BLOCK.match(escaped)
    return Markdown(f"{escaped[: begun.end() - 1]}\\{escaped[begun.end() - 1 :]}" if begun else escaped)


def code(text: object) -> Markdown:
    """Put text into a code span; plain where it has what would end one."""
    line = one_line(text)
    if not line or "`" in line or "\\|" in line or line.endswith("\\"):
        return plain(line)
    return Markdown(f"`{line}`")


def cell(text: object) -> str:
    """Escape a cell of a Markdown table."""
    return plain(text).replace("|", "\\|")


def shorten(text: str, limit: int = 300) -> str:
    """Put text on one line, cut to ``limit`` characters."""
    line = one_line(text)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def listed(values: Iterable[object], limit: int | None = None) -> Markdown:
    """Escape and join values."""
    items = [plain(value) for value in values]
    return Markdown(first_of(items, len(items) if limit is None else limit))


def first_of(texts: Sequence[str], limit: int) -> str:
    """Join texts by commas, as they are; of more than ``limit`` the first ones, the others counted."""
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def command(arguments: Iterable[str]) -> str:
    """Write a command on one line, quoted for bash and zsh; line breaks stand as ``\\n`` in ``$'...'``."""
    return " ".join(_quoted(str(argument)) for argument in arguments)


def shell_block(lines: Sequence[str]) -> Markdown:
    """Put commands to copy into a fence that nothing in them ends."""
    body = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return Markdown(f"{fence}sh\n{body}\n{fence}")


def spreadsheet_cell(value: Any) -> Any:
    """Escape a cell of a csv file: numbers as they are, text on one line and never the beginning of a formula."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.startswith(_FORMULA) else line


def render(template: Path, **values: Any) -> str:
    """Render a template of Markdown. Every value in it is escaped by :func:`plain`; a table, a code span or a block of
    commands is :class:`Markdown`, and stays. None is ``-``. Blank lines in a row are one, since no value has any.
    """
    text = _environment(template.parent).get_template(template.name).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@functools.cache
def _environment(folder: Path) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        finalize=lambda value: plain("-" if value is None else value),
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # which escapes only HTML: see finalize
    )
    for escape in (code, command, listed, shell_block, shorten):
        environment.filters[escape.__name__] = escape
    return environment


def _escape(special: re.Match[str]) -> str:
    return {"<": "&lt;", "&": "&amp;"}.get(special[0], f"\\{special[0]}")


def _quoted(argument: str) -> str:
    return shlex.quote(argument) if argument.isprintable() else f"$'{''.join(map(_ansi_c, argument))}'"


def _ansi_c(character: str) -> str:
    if character in _SHORT:
        return f"\\{_SHORT[character]}"
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that was no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return f"\\U{ord(character):08x}"
