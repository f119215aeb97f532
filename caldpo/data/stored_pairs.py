"""Hold the pairs of a data set with their texts packed, in a temporary file where they are large.

In memory stay, for each pair, its origin, its scores and two digests: all that it takes to split pairs, to draw from
them and to name their tokens. Texts are unpacked in blocks, as they were read.
"""

from __future__ import annotations

import hashlib
import operator
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import IO, overload

import numpy as np

from caldpo.data.pair import PreferencePair, prompt_key
from caldpo.errors import CaldpoError

BLOCK = 256  # pairs packed together, at most
IN_MEMORY = 16 * 2**20  # bytes of packed pairs, before a file takes them
_FIELDS = tuple(own.name for own in fields(PreferencePair))
_values = operator.attrgetter(*_FIELDS)


@dataclass(frozen=True, slots=True)
class PairFacts:
    """What stays in memory of a pair."""

    origin: str
    key: bytes  # of its prompt, see prompt_key
    content: bytes  # digest of all that its tokens depend on: not its scores or origin
    scores: tuple[float | None, float | None]
    is_text: bool  # whether its prompt is plain text
    label: bool | None = None  # of an unpaired row

    @property
    def is_scored(self) -> bool:
        """Whether the ground-truth reward of each response that there is, is known."""
        present = self.label is not False, self.label is not True
        return all(score is not None for score, is_there in zip(self.scores, present, strict=True) if is_there)

    @classmethod
    def of(cls, pair: PreferencePair) -> PairFacts:
        extras = pair.demonstration, pair.chosen_extra, pair.rejected_extra, pair.tools, pair.template_kwargs
        content = pair.prompt, extras, text_digest(pair.chosen), text_digest(pair.rejected)
        return cls(
            pair.origin,
            bytes.fromhex(prompt_key(pair.prompt)),
            text_digest("", content),
            (pair.score_chosen, pair.score_rejected),
            isinstance(pair.prompt, str),
            pair.label,
        )


def text_digest(text: str, *others: object) -> bytes:
    """Digest a text, which may be long, and other values by their notation; the same in every process."""
    content = hashlib.blake2b(repr(others).encode("utf-8", "surrogatepass"), digest_size=16)
    content.update(b"\0" + text.encode("utf-8", "surrogatepass"))
    return content.digest()


def pack(pairs: Sequence[PreferencePair]) -> bytes:
    """Pack the pairs of a block.

    Raises:
        RecursionError: one has tools, variables or further fields that are nested too deeply.
    """
    return pickle.dumps([_values(pair) for pair in pairs], protocol=pickle.HIGHEST_PROTOCOL)


@dataclass(frozen=True, slots=True)
class PackedPairs:
    """Some pairs of a packed block; small to send to another process."""

    block: bytes
    places: Sequence[int]  # in the block

    def unpack(self) -> list[PreferencePair]:
        values = pickle.loads(self.block)  # packed by this process or one that it forked
        return [PreferencePair(*values[place]) for place in self.places]


class _Store:
    """The blocks and facts of all pairs that were read together."""

    def __init__(self) -> None:
        self.origins: list[str] = []
        self.keys, self.contents, self.texts = bytearray(), bytearray(), bytearray()
        self.scores = array("d")  # two a pair, NaN where there is none
        self.labels = array("b")  # 1 and 0 of unpaired rows, -1 of pairs
        self.places = array("q")  # of each pair: its block, times BLOCK, and its place in it
        self._blocks: list[bytes] = []  # while they are in memory
        self._file: IO[bytes] | None = None
        self._ends = array("q", [0])
        self._unpacked: tuple[int, list[tuple[object, ...]]] = (-1, [])

    def add_block(self, block: bytes) -> None:
        self._ends.append(self._ends[-1] + len(block))
        self._blocks.append(block)
        if self._file is None and self._ends[-1] <= IN_MEMORY:
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="caldpo-pairs-")  # noqa: SIM115  # as long as the pairs
            self._file.writelines(self._blocks)
            self._file.flush()
        except OSError as error:
            raise CaldpoError(
                f"the texts of the data cannot be written there ({error.strerror or error})",
                key="TMPDIR",
                value=tempfile.gettempdir(),
                remedy="free some space, or let the environment variable TMPDIR name a folder on a larger disk",
            ) from error
        self._blocks.clear()

    def add(self, place: int, facts: PairFacts) -> None:
        """Add the pair at a place of the block added last."""
        self.places.append((len(self._ends) - 2) * BLOCK + place)
        self.origins.append(facts.origin)
        self.keys += facts.key
        self.contents += facts.content
        self.texts.append(facts.is_text)
        self.labels.append(-1 if facts.label is None else facts.label)
        self.scores.extend(float("nan") if score is None else score for score in facts.scores)

    def block(self, number: int) -> bytes:
        if self._file is None:
            return self._blocks[number]
        start, end = self._ends[number], self._ends[number + 1]
        return os.pread(self._file.fileno(), end - start, start)

    def pair(self, row: int) -> PreferencePair:
        number, place = divmod(self.places[row], BLOCK)
        if self._unpacked[0] != number:
            self._unpacked = number, pickle.loads(self.block(number))  # packed by this process
        return PreferencePair(*self._unpacked[1][place])  # type: ignore[arg-type]


class StoredPairs(Sequence[PreferencePair]):
    """An immutable sequence of pairs, each built on access; parts of it share the texts."""

    def __init__(self, store: _Store | None = None, rows: np.ndarray | None = None) -> None:
        self._store = _Store() if store is None else store
        self._rows = np.arange(len(self._store.origins)) if rows is None else rows

    @classmethod
    def of(cls, pairs: Iterable[PreferencePair]) -> StoredPairs:
        """Store pairs; those that are stored already are returned."""
        if isinstance(pairs, StoredPairs):
            return pairs
        writer, block = PairWriter(), list[PreferencePair]()
        for pair in pairs:
            block.append(pair)
            if len(block) == BLOCK:
                writer.add(block)
                block.clear()
        writer.add(block)
        return writer.pairs()

    def take(self, places: Sequence[int] | np.ndarray) -> StoredPairs:
        """Return the pairs at these places, in this order."""
        return StoredPairs(self._store, self._rows[np.asarray(places, dtype=np.int64)])

    def packed(self, most: int = BLOCK) -> Iterator[PackedPairs]:
        """Yield all pairs in order, packed, at most ``most`` at a time."""
        store = self._store
        blocks = groupby((divmod(store.places[row], BLOCK) for row in self._rows.tolist()), operator.itemgetter(0))
        for number, group in blocks:
            places = [place for _, place in group]
            block = store.block(number)
            yield from (PackedPairs(block, places[start : start + most]) for start in range(0, len(places), most))

    def origins(self) -> list[str]:
        """List file and line, or split and row, of each pair."""
        return [self._store.origins[row] for row in self._rows.tolist()]

    def origin(self, place: int) -> str:
        """Return file and line, or split and row, of the pair at a place."""
        return self._store.origins[self._rows[place]]

    def keys(self) -> Iterator[str]:
        """Yield the :func:`~caldpo.data.pair.prompt_key` of each pair."""
        keys = self._store.keys
        return (keys[16 * row : 16 * row + 16].hex() for row in self._rows.tolist())

    def contents(self) -> bytes:
        """Return the digests of what the tokens of all pairs depend on, one after another."""
        return np.frombuffer(self._store.contents, dtype=np.uint8).reshape(-1, 16)[self._rows].tobytes()

    def scores(self) -> np.ndarray:
        """Return the scores of chosen and rejected responses, NaN where there is none: ``(pairs, 2)``."""
        return np.frombuffer(self._store.scores, dtype=np.float64).reshape(-1, 2)[self._rows]

    def labels(self) -> np.ndarray:
        """Return the labels of unpaired rows, 1 or 0, and -1 for pairs: int8 of shape ``(pairs,)``."""
        return np.frombuffer(self._store.labels, dtype=np.int8)[self._rows]

    def all_text(self) -> bool:
        """Whether all prompts are plain text."""
        return bool(np.frombuffer(self._store.texts, dtype=np.uint8)[self._rows].all())

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> PreferencePair: ...
    @overload
    def __getitem__(self, place: slice) -> StoredPairs: ...
    def __getitem__(self, place: int | slice) -> PreferencePair | StoredPairs:
        if isinstance(place, slice):
            return StoredPairs(self._store, self._rows[place])
        return self._store.pair(int(self._rows[place]))

    def __iter__(self) -> Iterator[PreferencePair]:
        return (pair for some in self.packed() for pair in some.unpack())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class PairWriter:
    """Stores pairs block by block."""

    def __init__(self) -> None:
        self._store = _Store()

    def __len__(self) -> int:
        return len(self._store.origins)

    def add(self, pairs: Sequence[PreferencePair]) -> None:
        """Store the pairs of a block, at most ``BLOCK``."""
        self.add_packed(pack(pairs), [(place, PairFacts.of(pair)) for place, pair in enumerate(pairs)])

    def add_packed(self, block: bytes, facts: Iterable[tuple[int, PairFacts]]) -> None:
        """Store those pairs of a packed block whose places are named."""
        self._store.add_block(block)
        for place, own in facts:
            self._store.add(place, own)

    def pairs(self, start: int = 0) -> StoredPairs:
        """Return all pairs so far, from number ``start`` on; more may be stored behind them."""
        return StoredPairs(self._store, np.arange(start, len(self)))
