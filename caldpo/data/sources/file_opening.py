"""Open data files of text, and explain what can go wrong with one."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caldpo.errors import CaldpoError

# Bytes (or characters) of one row, longer than any real one: without a limit a small compressed file can hold a row
# larger than memory, and Python's objects take up to twenty times the memory of their JSON.
MAX_ROW = 16 * 2**20

# gzip makes text 3 to 20 times smaller, and endless repetition at most 1,032 times.
MAX_EXPANSION = 200
_ALWAYS_ALLOWED = 256 * 2**20  # bytes that any file may expand to, however small

_OTHER_KINDS = (
    (b"\x1f\x8b", "gzip", ".gz"),
    (b"PAR1", "parquet", ".parquet"),
    (b"PK\x03\x04", "zip", None),
    (b"\x28\xb5\x2f\xfd", "zstandard", None),
    (b"BZh", "bzip2", None),
    (b"\xfd7zXZ", "xz", None),
)


def too_long(what: str) -> str:
    """Return the reason for leaving out a line or row over the limit."""
    return f"{what} too long (over {MAX_ROW // 2**20} MiB)"


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """Open a text file for reading bytes, decompressed where its name ends in ``.gz``.

    Raises:
        CaldpoError: (while reading, too) no access, damaged or truncated compression, more expansion than text has, no
            UTF-8 text judging by the first bytes.
    """
    try:
        with path.open("rb") as file:
            zipped = path.suffix.lower() == ".gz"
            whole: io.BufferedReader[Any] = io.BufferedReader(_Expanded(file, path)) if zipped else file
            _require_text(whole.peek(64)[:64], path)
            yield whole
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CaldpoError(
            f"a damaged or truncated gzip file ({error})",
            key=str(path),
            remedy="copy or download it again; gzip -t tells whether it is whole",
        ) from error
    except OSError as error:
        raise CaldpoError(f"cannot be read ({error.strerror or error})", key=str(path)) from error


class _Expanded(io.RawIOBase):
    """The content of a gzip file, as long as it is in proportion to the size of the file."""

    def __init__(self, file: io.BufferedReader[Any], path: Path) -> None:
        self._file, self._path = file, path
        self._inner = gzip.GzipFile(fileobj=file, mode="rb")
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._inner.readinto(buffer)
        self._read += count
        if self._read > _ALWAYS_ALLOWED and self._read > MAX_EXPANSION * self._file.tell():
            raise CaldpoError(
                f"expands to more than {MAX_EXPANSION} times its size, which no text does",
                key=str(self._path),
                remedy="check its origin; if it is the intended training data, decompress it first",
            )
        return count


def _require_text(beginning: bytes, path: Path) -> None:
    """Refuse a file whose first bytes are not UTF-8: otherwise every single line would be reported."""
    for magic, kind, suffix in _OTHER_KINDS:
        if beginning.startswith(magic):
            raise CaldpoError(
                f"is {kind} data, but not named so",
                key=str(path),
                remedy=f"let its name end in {suffix}" if suffix else "decompress it first",
            )
    encoding = json.detect_encoding(beginning)[:6].upper()
    if encoding in ("UTF-16", "UTF-32"):
        raise CaldpoError(
            f"is text in {encoding}, where UTF-8 is expected",
            key=str(path),
            remedy=f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW",
        )
