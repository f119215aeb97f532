"""Read JSON rows from bytes, where a bad line costs that line and not the file."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from caldpo.data.raw_row import BLOCK_ROWS, RawRow, shown
from caldpo.data.sources import file_opening
from caldpo.data.sources.file_opening import open_bytes, too_long
from caldpo.errors import CaldpoError

BLANK_BYTES = b" \t\r\n\xef\xbb\xbf"  # of a line that is no row, a byte-order mark included
_BLANK = " \t\r\n"  # white space in JSON; str.strip() would also take U+0085 and others
_BLOCK = 2**20  # bytes read at a time
_MOST_BYTES = 2**22  # of the lines of a block, as long as it has several


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """Read one row per line, split on the byte 0x0A alone (U+2028 is legal inside a JSON string).

    Blank lines are skipped, but counted in line numbers. A byte-order mark before a row is tolerated.
    """
    with open_bytes(path) as handle:
        yield from _rows_of_lines(handle, path)


def jsonl_blocks(path: Path) -> Iterator[JsonLines]:
    """Read the rows of :func:`read_jsonl` by the hundred, still to be decoded."""
    with open_bytes(path) as handle:
        yield from _blocks(handle, path)


def read_json(path: Path) -> Iterator[RawRow]:
    """Read a list of rows, row by row, or JSON lines under the name ``.json`` (told apart by the first character).

    Raises:
        CaldpoError: a damaged list, or one object over several lines.
    """
    with open_bytes(path) as handle:
        beginning = handle.peek(4096)[:4096].lstrip(BLANK_BYTES)
        if re.match(rb"\{[ \t\r]*\n", beginning):
            raise CaldpoError(
                "one object over several lines, where a list of rows or one object per line is expected",
                key=str(path),
                remedy="write its rows as a list, for instance by jq .data FILE > NEW, or one row per line (.jsonl)",
            )
        if beginning[:1] != b"[":
            yield from _rows_of_lines(handle, path)
            return
        number = 0
        try:
            for number, (item, repeated) in enumerate(_ListReader(handle)):
                yield _row(item, repeated, f"{path}[{number}]")
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else _reason(error)
            raise CaldpoError(
                f"no JSON list of rows ({what}, in or after row {number})",
                key=str(path),
                remedy="mend the file; as JSON lines (.jsonl) a fault would cost its line alone",
            ) from error


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Lines of a file that follow each other; iterating decodes them to rows."""

    path: Path
    first: int  # number of the first of them
    lines: list[bytes]  # a line over the limit is cut right behind it

    def __iter__(self) -> Iterator[RawRow]:
        decoder = _Decoder()
        for number, line in enumerate(self.lines, self.first):
            origin = f"{self.path}:{number}"
            if len(line) > file_opening.MAX_ROW:
                yield RawRow(origin, None, too_long("line"))
            elif (row := _parse_line(line, origin, decoder)) is not None:
                yield row


def _blocks(handle: BinaryIO, path: Path) -> Iterator[JsonLines]:
    first, size, lines = 1, 0, list[bytes]()
    while line := handle.readline(file_opening.MAX_ROW + 1):
        lines.append(line)
        size += len(line)
        while len(line) > file_opening.MAX_ROW and not line.endswith(b"\n"):
            line = handle.readline(_BLOCK) or b"\n"
        if len(lines) == BLOCK_ROWS or size > _MOST_BYTES:
            yield JsonLines(path, first, lines)
            first, size, lines = first + len(lines), 0, []
    if lines:
        yield JsonLines(path, first, lines)


def _rows_of_lines(handle: BinaryIO, path: Path) -> Iterator[RawRow]:
    return (row for block in _blocks(handle, path) for row in block)


def _parse_line(line: bytes, origin: str, decoder: _Decoder) -> RawRow | None:
    """Parse a line to a row, with its error where there is one; None for a blank line.

    ``NaN`` and ``1e400`` become non-finite floats: whether that matters depends on the column.
    """
    try:
        text = line.decode("utf-8").removeprefix("\ufeff").strip(_BLANK)
    except UnicodeDecodeError as error:
        at = error.start
        around = line[max(0, at - 9) : at + 9].decode("cp1252", errors="replace")
        wrong = f"byte 0x{line[at]:02X} at {at + 1}; {around!r} in Windows-1252"
        return RawRow(origin, None, f"not UTF-8 ({wrong})")
    if not text:
        return None
    try:
        value = decoder.decode(text)
        return _row(value, decoder.repeated, origin)
    except (ValueError, RecursionError) as error:
        return RawRow(origin, None, f"not JSON ({_reason(error)})")


def _row(value: Any, repeated: str | None, origin: str) -> RawRow:
    if not isinstance(value, dict):
        names = {type(None): "null", bool: "a boolean", str: "text", list: "a list"}
        return RawRow(origin, None, f"not a JSON object (but {names.get(type(value), 'a number')})")
    return RawRow(origin, value, None if repeated is None else f"a key stands twice in an object ({shown(repeated)})")


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg} at {place}column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


class _Decoder(json.JSONDecoder):
    """Decodes JSON, and notes a key given twice in an object, of which Python's json silently keeps the last value."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.repeated: str | None = None  # in the value decoded last

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """Decode the value at ``idx``; return it and where it ends."""
        self.repeated = None
        return super().raw_decode(s, idx)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            self.repeated = next(name for name, _ in pairs if counts[name] > 1)
        return result


class _ListReader:
    """Decodes the items of a JSON list one by one, in the memory of the longest item; yields repeated keys, too.

    Raises:
        ValueError: (while iterating) not UTF-8, no list of JSON values, or an item over the limit.
        RecursionError: (while iterating) an item is nested too deeply.
    """

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._utf8 = handle, codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder, self._buffer, self._at, self._ended = _Decoder(), "", 0, False

    def __iter__(self) -> Iterator[tuple[Any, str | None]]:
        self._skip("[")
        if self._next() != "]":
            yield self._value()
            while self._next() == ",":
                self._skip(",")
                yield self._value()
        self._skip("]")
        if self._next():
            raise ValueError("something follows the list")

    def _next(self) -> str:
        """Return the next character that is not white space, without moving past it; empty at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._read_more()

    def _skip(self, expected: str) -> None:
        if self._next() != expected:
            raise ValueError(f"Expecting {expected!r}" if self._next() else "it ends too early")
        self._at += 1

    def _value(self) -> tuple[Any, str | None]:
        """Decode the next value; return it with a key given twice in it."""
        if not self._next():
            raise ValueError("it ends too early")
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                # the end of a value that is yet to be read may leave a text open
                open_text = isinstance(error, json.JSONDecodeError) and error.msg.startswith("Unterminated string")
                if self._ended or (not open_text and self._is_full()):
                    raise
            else:
                if (self._ended or end < len(self._buffer)) and end - self._at <= file_opening.MAX_ROW:
                    # at the end of the buffer, a number might go on
                    self._at = end
                    return value, self._decoder.repeated
            if self._is_full():
                raise ValueError(too_long("a row"))
            self._read_more()

    def _is_full(self) -> bool:
        """Whether the buffer holds more than a row may have."""
        return len(self._buffer) - self._at > file_opening.MAX_ROW

    def _read_more(self) -> None:
        """Read as much again as the buffer holds, so that a long item is not decoded over and over."""
        block = self._handle.read(max(_BLOCK, len(self._buffer) - self._at))
        self._ended = not block
        self._buffer = self._buffer[self._at :] + self._utf8.decode(block, final=self._ended)
        self._at = 0
