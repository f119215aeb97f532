"""Store log-probs of a split on disk, in parts that processes share: each is computed once, by the first process.

A part is a safetensors file, written atomically, with a checksum of its values in the header. A process holds the lock
of the part that it computes; the lock ends with the process, so that an unfinished part of a killed one is taken over
and its finished ones are read.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from caldpo.utils.atomic_io import atomic_file
from caldpo.utils.collectives import call_on_all_ranks, is_first_rank

PAIRS_PER_PART = 1024
_POLL_SECONDS = 0.1  # between looks for parts that others compute

Compute = Callable[[range], Tensor]
"""Rows of the split in, log-probs of chosen and rejected out: shape ``(2, rows)``."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """Rows of a split and the file of their values."""

    rows: range
    path: Path


@dataclass(frozen=True)
class PartValues:
    """Values of a part, shape ``(2, rows)``, and their checksum; ``computed``: now, by this process."""

    values: Tensor
    checksum: str
    computed: bool


class DamagedPartError(Exception):
    """A file does not hold the values of its part; the message tells why."""


class LogpStore:
    """The log-probs of one split in one folder.

    Args:
        folder: created if need be.
        key: digest of everything that determines the values.
        pairs: of the split.
        dtype: of the values.
        report: called with a message on a damaged part, or on waiting for another process.
    """

    def __init__(self, folder: Path, key: str, pairs: int, dtype: torch.dtype, report: Report) -> None:
        self.folder, self.key, self.dtype, self.report = folder, key, dtype, report
        starts = range(0, pairs, PAIRS_PER_PART)
        self.parts = [
            Part(range(s, min(s + PAIRS_PER_PART, pairs)), folder / f"part-{i:05d}.safetensors")
            for i, s in enumerate(starts)
        ]

    def fill(self, compute: Compute, distrusted: Iterable[str] = ()) -> list[PartValues]:
        """Read each part in order, or compute it, or wait for another process that does.

        Values whose checksum is ``distrusted`` are computed again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        refused, reported = frozenset(distrusted), False
        done: dict[Part, PartValues] = {}
        while waiting := [part for part in self.parts if part not in done]:
            for part in waiting:
                if (values := self._read_or_compute(part, compute, refused)) is not None:
                    done[part] = values
            if not done.keys() & set(waiting):
                if not reported:
                    self.report("waiting for another process that computes them")
                    reported = True
                time.sleep(_POLL_SECONDS)
        return [done[part] for part in self.parts]

    def fill_together(self, compute: Compute, distrusted: Iterable[str] = ()) -> list[PartValues]:
        """Do the same where all ranks compute each part together: the first one reads, waits and writes."""
        return [self._read_or_compute_together(part, compute, frozenset(distrusted)) for part in self.parts]

    def read(self, part: Part) -> PartValues | None:
        """Read the values of a part; None where there is no file.

        Raises:
            DamagedPartError: the file has changed since it was written, or is another part's.
        """
        if not part.path.exists():
            return None
        try:
            with safe_open(part.path, "pt") as file:
                metadata = file.metadata() or {}
                sides = [file.get_tensor(side).clone() for side in ("chosen", "rejected")]
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError) as error:
            raise DamagedPartError(f"cannot be read ({str(error).splitlines()[0]})") from error
        if any(side.shape != (len(part.rows),) or side.dtype != self.dtype for side in sides):
            raise DamagedPartError(f"does not hold {len(part.rows):,} pairs in {self.dtype}")
        values = torch.stack(sides)
        checksum = self._checksum(part, values)
        if metadata.get("sha256") != checksum:
            raise DamagedPartError("its checksum is wrong")
        return PartValues(values, checksum, computed=False)

    def write(self, part: Part, values: Tensor) -> PartValues:
        """Write the values of a part atomically."""
        values = values.to("cpu", self.dtype).contiguous()
        checksum = self._checksum(part, values)
        with atomic_file(part.path) as file:
            file.write(save({"chosen": values[0], "rejected": values[1]}, {"sha256": checksum}))
        return PartValues(values, checksum, computed=True)

    def _read_or_compute(self, part: Part, compute: Compute, refused: frozenset[str]) -> PartValues | None:
        """Return the values of the part; None while another process computes it."""
        if (values := self._trusted(part, refused)) is not None:
            return values
        lock = FileLock(part.path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:  # `with lock` would take it a second time, and leave it taken
            return self._trusted(part, refused, locked=True) or self.write(part, compute(part.rows))
        finally:
            lock.release()

    def _read_or_compute_together(self, part: Part, compute: Compute, refused: frozenset[str]) -> PartValues:
        lock = FileLock(part.path.with_suffix(".lock"))

        def read_or_lock() -> PartValues | None:
            if not is_first_rank():
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            stored = self._trusted(part, refused)
            if stored is None:
                lock.acquire()
                stored = self._trusted(part, refused, locked=True)
            return stored

        try:
            result = call_on_all_ranks(read_or_lock)[0]
            if result is None:
                values = compute(part.rows)
                result = call_on_all_ranks(lambda: self.write(part, values) if is_first_rank() else None)[0]
        finally:
            lock.release()
        assert result is not None  # the first rank has read it or written it
        return result

    def _trusted(self, part: Part, refused: frozenset[str], *, locked: bool = False) -> PartValues | None:
        """Read values that are neither damaged nor refused; ``locked``: report others, as this process replaces them.

        Without the lock another process may be doing so.
        """
        try:
            values = self.read(part)
        except DamagedPartError as damage:
            fault = f"is damaged: {damage}"
        else:
            if values is None or values.checksum not in refused:
                return values
            fault = "holds other values than the reference computes"
        if locked:
            self.report(f"{part.path} {fault}: computed again")
        return None

    def _checksum(self, part: Part, values: Tensor) -> str:
        """Digest of the values, key and rows, so that a file in the wrong place is detected, too."""
        prefix = f"{self.key}:{part.rows.start}:{part.rows.stop}:".encode()
        return hashlib.sha256(prefix + values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
