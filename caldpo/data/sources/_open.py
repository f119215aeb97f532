"""Opening data files, and turning what can go wrong with one into an error for a person."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from caldpo.errors import CaldpoError


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading bytes, decompressed where its name ends in ``.gz``.

    Raises:
        CaldpoError: (while reading, too) no access, damaged or truncated compression.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            yield cast(BinaryIO, handle)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CaldpoError(
            f"a damaged or truncated gzip file ({error})",
            key=str(path),
            remedy="copy or download it again; gzip -t tells whether it is whole",
        ) from error
    except OSError as error:
        raise CaldpoError(f"cannot be read ({error.strerror or error})", key=str(path)) from error
