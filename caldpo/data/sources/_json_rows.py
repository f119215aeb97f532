"""JSON rows read from bytes, where a bad line costs that line and not the file."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from caldpo.data.raw_row import RawRow, shown
from caldpo.data.sources import _file_open as _open
from caldpo.data.sources._file_open import open_bytes, too_long
from caldpo.errors import CaldpoError

_BLANK = " \t\r\n"  # what JSON calls white space; str.strip() would also take U+0085 and others
_BLOCK = 2**20  # bytes read at a time


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """One row a line, split on the byte 0x0A alone (U+2028 is legal inside a JSON string).

    Blank lines are skipped, but counted in line numbers. A byte-order mark before a row is tolerated.
    """
    with open_bytes(path) as handle:
        yield from _rows_of_lines(handle, path)


def read_json(path: Path) -> Iterator[RawRow]:
    """A list of rows, read row by row, or JSON lines under the name ``.json`` (told apart by the first character)."""
    with open_bytes(path) as handle:
        if handle.peek(4096)[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
            yield from _rows_of_lines(handle, path)
            return
        number = 0
        try:
            for number, item in enumerate(_items(handle)):
                yield _checked(item, f"{path}[{number}]")
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else _why(error)
            raise CaldpoError(
                f"no JSON list of rows ({what}, in or after row {number})",
                key=str(path),
                remedy="mend the file; as JSON lines (.jsonl) a fault would cost its line alone",
            ) from error


def _rows_of_lines(handle: BinaryIO, path: Path) -> Iterator[RawRow]:
    for number, line in _lines(handle):
        origin = f"{path}:{number}"
        if line is None:
            yield RawRow(origin, None, too_long("line"))
        elif (row := parse_line(line, origin)) is not None:
            yield row


def parse_line(line: bytes, origin: str) -> RawRow | None:
    """The row in one line of bytes, with its error where there is one; None for a blank line.

    ``NaN`` and ``1e400`` become floats that are not finite, as Python's json reads them: whether that matters
    depends on the column.
    """
    try:
        text = line.decode("utf-8").removeprefix("\ufeff").strip(_BLANK)
    except UnicodeDecodeError as error:
        return RawRow(origin, None, f"not UTF-8 (byte 0x{line[error.start]:02X} at {error.start + 1}{_latin(line)})")
    if not text:
        return None
    try:
        return _checked(_decode(text), origin)
    except (ValueError, RecursionError) as error:
        return RawRow(origin, None, f"not JSON ({_why(error)})")


def _latin(line: bytes) -> str:
    """The first word that is no UTF-8 as it reads in the other encoding of Western texts, where it reads as one."""
    word = next((w for w in re.split(rb"[^\w\x80-\xff]+", line) if not _is_utf8(w)), b"")
    try:
        text = word.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    is_word = text.isalpha() and any(letter.isascii() for letter in text)
    return f"; {text[:20]!r} in Windows-1252" if is_word else ""


def _is_utf8(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Repeated(dict[str, Any]):
    """An object in which a key stood twice; Python's json would silently keep the last value."""

    key: str = ""


def _decode(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _items(handle: BinaryIO) -> Iterator[Any]:
    """The items of a JSON list, decoded one by one, so that a long list needs no more memory than its longest item.

    Raises:
        ValueError: the text is not UTF-8, is no list of JSON values, or has an item over the limit.
        RecursionError: an item is nested too deeply.
    """
    text = _Text(handle)
    text.skip("[")
    if text.next() == "]":
        text.skip("]")
    else:
        decoder = json.JSONDecoder(object_pairs_hook=_object)
        while True:
            yield text.value(decoder)
            if text.next() != ",":
                break
            text.skip(",")
        text.skip("]")
    if text.next():
        raise ValueError("something follows the list")


class _Text:
    """Characters of a file of which a part is in memory."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._decoder = handle, codecs.getincrementaldecoder("utf-8-sig")()
        self._held, self._at, self._ended = "", 0, False

    def next(self) -> str:
        """The next character that is not white space, without moving past it; empty at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._held) or self._ended:
                return self._held[self._at : self._at + 1]
            self._read_on()

    def skip(self, expected: str) -> None:
        """Move past this character."""
        if self.next() != expected:
            raise ValueError(f"Expecting {expected!r}" if self.next() else "it ends too early")
        self._at += 1

    def value(self, decoder: json.JSONDecoder) -> Any:
        """The next value."""
        if not self.next():
            raise ValueError("it ends too early")
        while True:
            try:
                found, end = decoder.raw_decode(self._held, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                # of a value whose end is yet to be read, a text may be open
                cut = isinstance(error, json.JSONDecodeError) and error.msg.startswith("Unterminated string")
                if self._ended or (not cut and self._is_full()):
                    raise
            else:
                if (self._ended or end < len(self._held)) and end - self._at <= _open.MAX_ROW:
                    # at the end of what is held, a number might go on
                    self._at = end
                    return found
            if self._is_full():
                raise ValueError(too_long("a row"))
            self._read_on()

    def _is_full(self) -> bool:
        """Whether more is held than a row may have."""
        return len(self._held) - self._at > _open.MAX_ROW

    def _read_on(self) -> None:
        """Take in as much again as is held, so that a long item is not tried over and over."""
        more = self._handle.read(max(_BLOCK, len(self._held) - self._at))
        self._ended = not more
        self._held = self._held[self._at :] + self._decoder.decode(more, final=self._ended)
        self._at = 0


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated, seen = _Repeated(found), set[str]()
    for name, _ in pairs:
        if name in seen:
            repeated.key = name
            break
        seen.add(name)
    return repeated


def _checked(value: Any, origin: str) -> RawRow:
    if not isinstance(value, dict):
        names = {type(None): "null", bool: "a boolean", str: "text", list: "a list"}
        return RawRow(origin, None, f"not a JSON object (but {names.get(type(value), 'a number')})")
    repeated = _find_repeated(value)
    return RawRow(origin, value, None if repeated is None else f"a key stands twice in an object ({shown(repeated)})")


def _find_repeated(value: Any) -> str | None:
    if isinstance(value, _Repeated):
        return value.key
    if not isinstance(value, dict | list):
        return None
    inner = value.values() if isinstance(value, dict) else value
    return next((key for item in inner if (key := _find_repeated(item)) is not None), None)


def _lines(handle: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1, and the lines; None for one over the limit, which is read past."""
    number = 0
    while line := handle.readline(_open.MAX_ROW + 1):
        number += 1
        over = len(line) > _open.MAX_ROW
        while over and line and not line.endswith(b"\n"):
            line = handle.readline(_BLOCK)
        yield number, None if over else line


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg} at {place}column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
