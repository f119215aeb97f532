"""JSON rows read from bytes, where a bad line costs that line and not the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from caldpo.data.rows import RawRow
from caldpo.data.sources._open import open_bytes
from caldpo.errors import CaldpoError

# Longer than any real row; without a limit a small gzip file can expand into a line larger than memory.
MAX_LINE_BYTES = 64 * 2**20

_BLANK = " \t\r\n"  # what JSON calls white space; str.strip() would also take U+0085 and others


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """One row a line, split on the byte 0x0A alone (U+2028 is legal inside a JSON string).

    Blank lines are skipped, but counted in line numbers. A byte-order mark before a row is tolerated.
    """
    with open_bytes(path) as handle:
        for number, line in _lines(handle):
            origin = f"{path}:{number}"
            if line is None:
                yield RawRow(origin, None, f"line too long (over {MAX_LINE_BYTES // 2**20} MiB)")
            elif (row := parse_line(line, origin)) is not None:
                yield row


def read_json(path: Path) -> Iterator[RawRow]:
    """A list of rows, or JSON lines under the name ``.json`` (told apart by the first character)."""
    with open_bytes(path) as handle:
        is_list = handle.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        handle.seek(0)
        text = handle.read() if is_list else b""
    if not is_list:
        yield from read_jsonl(path)
        return
    try:
        rows = _decode(text.decode("utf-8").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise CaldpoError(
            f"no JSON list of rows ({_why(error)})",
            key=str(path),
            remedy="mend the file; as JSON lines (.jsonl) a fault would cost its line alone",
        ) from error
    for i, row in enumerate(rows):
        yield _checked(row, f"{path}[{i}]")


def parse_line(line: bytes, origin: str) -> RawRow | None:
    """The row in one line of bytes, with its error where there is one; None for a blank line.

    ``NaN`` and ``1e400`` become floats that are not finite, as Python's json reads them: whether that matters
    depends on the column.
    """
    try:
        text = line.decode("utf-8").removeprefix("\ufeff").strip(_BLANK)
    except UnicodeDecodeError as error:
        return RawRow(origin, None, f"not UTF-8 (byte 0x{line[error.start]:02X} at {error.start + 1})")
    if not text:
        return None
    try:
        return _checked(_decode(text), origin)
    except (ValueError, RecursionError) as error:
        return RawRow(origin, None, f"not JSON ({_why(error)})")


class _Repeated(dict[str, Any]):
    """An object in which a key stood twice; Python's json would silently keep the last value."""

    key: str = ""


def _decode(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    repeated = _Repeated(found)
    repeated.key = next(name for i, name in enumerate(names) if name in names[:i])
    return repeated


def _checked(value: Any, origin: str) -> RawRow:
    if not isinstance(value, dict):
        names = {type(None): "null", bool: "a boolean", str: "text", list: "a list"}
        return RawRow(origin, None, f"not a JSON object (but {names.get(type(value), 'a number')})")
    repeated = _find_repeated(value)
    return RawRow(origin, value, None if repeated is None else f"a key stands twice in an object ({repeated!r})")


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
    while line := handle.readline(MAX_LINE_BYTES + 1):
        number += 1
        too_long = len(line) > MAX_LINE_BYTES
        while too_long and line and not line.endswith(b"\n"):
            line = handle.readline(2**20)
        yield number, None if too_long else line


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg} at {place}column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
