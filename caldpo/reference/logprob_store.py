"""Log-probs of a split on disk, in parts that processes share: each is computed once, by whoever comes first.

A part is a safetensors file that appears whole or not at all, and says in its header which values belong in it,
by a checksum. A process holds the lock of the part that it computes; the lock goes with the process, so that a
killed one's unfinished part is taken over and its finished ones are kept.
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
_LOOK_AGAIN = 0.1  # seconds between looks at what others compute

Compute = Callable[[range], Tensor]
"""Rows of the split in, log-probs of chosen and rejected out: shape ``(2, rows)``."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """Rows of a split and the file of their values."""

    rows: range
    path: Path


@dataclass(frozen=True)
class Found:
    """Values of a part, shape ``(2, rows)``, and their checksum; ``computed``: by this process, just now."""

    values: Tensor
    checksum: str
    computed: bool


class DamagedPartError(Exception):
    """A file that does not hold what it should; says why."""


class LogpStore:
    """The log-probs of one split in one folder.

    Args:
        folder: created if need be.
        key: of everything that determines the values.
        pairs: of the split.
        dtype: of the values.
        say: told what is found wrong, and when another process has to be waited for.
    """

    def __init__(self, folder: Path, key: str, pairs: int, dtype: torch.dtype, say: Say) -> None:
        self.folder, self.key, self.dtype, self.say = folder, key, dtype, say
        starts = range(0, pairs, PAIRS_PER_PART)
        self.parts = [
            Part(range(s, min(s + PAIRS_PER_PART, pairs)), folder / f"part-{i:05d}.safetensors")
            for i, s in enumerate(starts)
        ]

    def fill(self, compute: Compute, distrusted: Iterable[str] = ()) -> list[Found]:
        """Every part, in order: read where it is there, computed where it is not, waited for where others do it.

        Args:
            compute: the values of some rows.
            distrusted: checksums of values that are not to be taken, however well they are kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        refused, told = frozenset(distrusted), False
        done: dict[Part, Found] = {}
        while waiting := [part for part in self.parts if part not in done]:
            for part in waiting:
                if (values := self._read_or_compute(part, compute, refused)) is not None:
                    done[part] = values
            if not done.keys() & set(waiting):
                if not told:
                    self.say("waiting for another process that computes them")
                    told = True
                time.sleep(_LOOK_AGAIN)
        return [done[part] for part in self.parts]

    def fill_together(self, compute: Compute, distrusted: Iterable[str] = ()) -> list[Found]:
        """The same where all ranks have to compute each part together: the first one reads, waits and writes.

        Args:
            compute: the values of some rows, the same on every rank.
            distrusted: as in :meth:`fill`.
        """
        return [self._read_or_compute_together(part, compute, frozenset(distrusted)) for part in self.parts]

    def read(self, part: Part) -> Found | None:
        """The values of a part, None where there is no file.

        Raises:
            DamagedPartError: the file is not what was written, or belongs to something else.
        """
        if not part.path.exists():
            return None
        try:
            with safe_open(part.path, "pt") as file:
                said = file.metadata() or {}
                sides = [file.get_tensor(side).clone() for side in ("chosen", "rejected")]
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError) as error:
            raise DamagedPartError(f"cannot be read ({str(error).splitlines()[0]})") from error
        if any(side.shape != (len(part.rows),) or side.dtype != self.dtype for side in sides):
            raise DamagedPartError(f"does not hold {len(part.rows):,} pairs in {self.dtype}")
        values = torch.stack(sides)
        checksum = self._checksum(part, values)
        if said.get("sha256") != checksum:
            raise DamagedPartError("its checksum is wrong")
        return Found(values, checksum, computed=False)

    def write(self, part: Part, values: Tensor) -> Found:
        """Keep the values of a part: complete under its name, or not there."""
        values = values.to("cpu", self.dtype).contiguous()
        checksum = self._checksum(part, values)
        with atomic_file(part.path) as file:
            file.write(save({"chosen": values[0], "rejected": values[1]}, {"sha256": checksum}))
        return Found(values, checksum, computed=True)

    def _read_or_compute(self, part: Part, compute: Compute, refused: frozenset[str]) -> Found | None:
        """None while another process computes the part."""
        found, _ = self._trusted(part, refused)
        if found is not None:
            return found
        lock = FileLock(part.path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:  # `with lock` would take it a second time, and leave it taken
            found, fault = self._trusted(part, refused)  # another process may have been faster
            if found is None and fault:
                self.say(f"{part.path} {fault}: computed anew")
            return found or self.write(part, compute(part.rows))
        finally:
            lock.release()

    def _read_or_compute_together(self, part: Part, compute: Compute, refused: frozenset[str]) -> Found:
        lock = FileLock(part.path.with_suffix(".lock"))

        def look() -> Found | None:
            if not is_first_rank():
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            found, _ = self._trusted(part, refused)
            if found is None:
                lock.acquire()
                found, fault = self._trusted(part, refused)
                if found is None and fault:
                    self.say(f"{part.path} {fault}: computed anew")
            return found

        try:
            found = call_on_all_ranks(look)[0]
            if found is None:
                values = compute(part.rows)
                found = call_on_all_ranks(lambda: self.write(part, values) if is_first_rank() else None)[0]
        finally:
            lock.release()
        assert found is not None  # the first rank has read it or written it
        return found

    def _trusted(self, part: Part, refused: frozenset[str]) -> tuple[Found | None, str | None]:
        """The values, or what is wrong with them (None: they are not there)."""
        try:
            found = self.read(part)
        except DamagedPartError as damage:
            return None, f"is damaged: {damage}"
        if found is not None and found.checksum in refused:
            return None, "holds other values than the reference gives"
        return found, None

    def _checksum(self, part: Part, values: Tensor) -> str:
        """Of the values and of what they belong to, so that a file in the wrong place is noticed, too."""
        place = f"{self.key}:{part.rows.start}:{part.rows.stop}:".encode()
        return hashlib.sha256(place + values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
