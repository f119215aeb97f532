"""Read, check and tokenise training pairs as training needs them: for data larger than memory.

A shuffle buffer of rows determines the order by the seed and the epoch; unusable rows drop out behind it. So the pair
at a position of the stream is always the same, whoever asks: each rank goes through the whole stream and takes its
share of each step, and a resumed run goes through it again up to its position. In memory are the rows of the buffer and
the pairs of a few rows.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from caldpo.data.data_parts import Named, parts_of
from caldpo.data.data_report import Rejection
from caldpo.data.joined_sources import about, require_files_once
from caldpo.data.load import ReadPair, RowReader
from caldpo.data.pair import TokenizedPair
from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.rejected_rows import REJECTED_ROWS, append_rejection
from caldpo.data.split import SHARED
from caldpo.data.stored_pairs import PackedPairs
from caldpo.data.tokenize import PairTokenizer
from caldpo.errors import CaldpoError
from caldpo.utils.delayed_progress import DelayedProgress
from caldpo.utils.notes import print_notes

ENDLESS = 2**48  # pairs that a stream is planned to have
SAMPLE = 256  # rows at the beginning of the first epoch, which are checked and reported before a model loads
_ROWS = 32  # read and tokenised together
REMEMBERED = 1_000  # pairs that can be asked for again, and named


class ShuffledRows(PairSource):
    """The rows of several splits of a source, one after another, shuffled in a buffer.

    As a source, it has the first rows of the first epoch.

    Raises:
        CaldpoError: the splits have weights.
    """

    def __init__(self, source: PairSource, named: Named, *, buffer: int, seed: int) -> None:
        parts = parts_of(named, "data.train")
        if parts[0].share is not None:
            raise CaldpoError(
                "has weights, for which the pairs of each data set have to be counted first",
                key="data.train",
                value=named,
                remedy="name the data sets without weights, or set data.streaming=false",
            )
        self._splits = [part.name for part in parts]
        self.name, self.label, self._source = source.name, " + ".join(self._splits), source
        self._buffer, self._seed = buffer, seed
        require_files_once(source, self._splits, "data.train")

    def files(self, split: str) -> list[Path]:
        return [file for name in self._splits for file in self._source.files(name)]

    def file_sizes(self, split: str) -> list[tuple[str, int]]:
        return [file for name in self._splits for file in self._source.file_sizes(name)]

    def notes(self, split: str) -> list[str]:
        return [note for name in self._splits for note in self._source.notes(name)]

    def rows(self, split: str) -> Iterator[RawRow]:
        return islice(self.epoch(0), SAMPLE)

    def epoch(self, number: int) -> Iterator[RawRow]:
        """Yield all rows in the order of an epoch."""
        draw = random.Random(f"{self._seed} {number}")
        buffer: list[RawRow] = []
        for row in (row for split in self._splits for row in self._split(split)):
            if len(buffer) < self._buffer:
                buffer.append(row)
                continue
            place = draw.randrange(self._buffer)
            yield buffer[place]
            buffer[place] = row
        draw.shuffle(buffer)
        yield from buffer

    def _split(self, name: str) -> Iterator[RawRow]:
        with about(name, "data.train"):
            yield from self._source.stream(name)


class PairStream:
    """The tokenised pairs of a stream by their position, to be asked for in ascending order.

    Args:
        rows: of the training split.
        reader, tokenizer: make pairs of rows, and tokens of pairs.
        needs_scores: each pair has to have true rewards; otherwise those that some have are not used.
        on_invalid, on_degenerate, on_shared_prompts: the settings.
        test_prompts: keys of the prompts of the test split.
        rejected: the file that lists rows that give no pair, the first :data:`SAMPLE` rows' already; None on other
            ranks than the first.
    """

    def __init__(
        self,
        rows: ShuffledRows,
        reader: RowReader,
        tokenizer: PairTokenizer,
        *,
        needs_scores: bool,
        on_invalid: Literal["error", "skip"],
        on_degenerate: Literal["drop", "keep"],
        on_shared_prompts: Literal["error", "drop_train", "keep"],
        test_prompts: frozenset[str],
        rejected: Path | None = None,
    ) -> None:
        self._rows, self._reader, self._tokenizer, self.has_scores = rows, reader, tokenizer, needs_scores
        self._on_invalid, self._on_degenerate, self._on_shared = on_invalid, on_degenerate, on_shared_prompts
        self._test_prompts, self._rejected = test_prompts, rejected
        self._listed = SAMPLE  # rows of the first epoch whose rejections are listed
        self._lists = False  # whether those of the current rows are to be
        self._start()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> TokenizedPair:
        if self._next and position < self._next - len(self._latest):
            self._start()  # another pass from the beginning
        if self._next == 0 and position > REMEMBERED:
            self._skip(position)
        while self._next <= position:
            self._latest.append(next(self._pairs))
            self._next += 1
        return self._latest[position - self._next]

    def origin(self, position: int) -> str:
        """Return file and line of a pair that was read a while ago at most."""
        behind = self._next - position
        return self._latest[-behind].origin if 0 < behind <= len(self._latest) else f"pair {position:,} of the stream"

    def file_sizes(self) -> list[tuple[str, int]]:
        """List names and sizes (bytes) of the files that are read."""
        return self._rows.file_sizes("")

    def _skip(self, position: int) -> None:
        """Read up to where a run stopped, which takes a while."""
        print_notes([f"reading the stream again up to pair {position:,}, where the run goes on"])
        with DelayedProgress("Reading up to where the run goes on", position) as progress:
            while self._next < position:
                self._latest.append(next(self._pairs))
                self._next += 1
                progress.advance(1)

    def _start(self) -> None:
        self._pairs, self._next = self._generate(), 0
        self._latest: deque[TokenizedPair] = deque(maxlen=REMEMBERED)

    def _generate(self) -> Iterator[TokenizedPair]:
        position = 0
        for epoch in count():
            before, rows, read = position, self._rows.epoch(epoch), 0
            while chunk := list(islice(rows, _ROWS)):
                self._lists = epoch == 0 and read >= self._listed
                read += len(chunk)
                self._listed = max(self._listed, read)
                for pair in self._tokenized(chunk):
                    yield replace(pair, index=position)
                    position += 1
            if position == before:
                raise CaldpoError(
                    "none of its rows is a usable pair",
                    key="data.train",
                    value=self._rows.label,
                    remedy=f"check that this is preference data; {REJECTED_ROWS} in the run's folder lists the reasons",
                )

    def _tokenized(self, rows: list[RawRow]) -> Iterator[TokenizedPair]:
        """Yield the pairs of some rows; their index is to be set."""
        read = self._reader.read(rows)
        usable: list[ReadPair] = []
        places: list[int] = []
        for place, row in enumerate(row for row in read.rows if not self._is_rejected(row)):
            assert isinstance(row, ReadPair)
            if self._is_usable(row):
                usable.append(row)
                places.append(place)
        chunk = self._tokenizer.tokenize(PackedPairs(read.pairs, places))
        for rejection in chunk.rejections:
            self._leave_out(rejection)
        tokens, start = np.frombuffer(chunk.tokens, np.int32), 0
        for place, ends in zip(chunk.places, zip(*[iter(chunk.ends)] * 3, strict=True), strict=True):
            prompt, chosen, rejected = (tokens[first:end].tolist() for first, end in pairwise((start, *ends)))
            start, facts = ends[-1], usable[place].facts
            yield TokenizedPair(prompt, chosen, rejected, *facts.scores, 0, facts.origin)

    def _is_rejected(self, row: ReadPair | Rejection) -> bool:
        if isinstance(row, Rejection):
            self._leave_out(row)
        return isinstance(row, Rejection)

    def _is_usable(self, row: ReadPair) -> bool:
        origin = row.facts.origin
        if isinstance(row.signal, str) and self._on_degenerate == "drop":
            self._leave_out(Rejection(origin, "degenerate", row.signal))
        elif row.facts.key.hex() in self._test_prompts and self._on_shared != "keep":
            self._leave_out(Rejection(origin, "filtered", SHARED), refused=self._on_shared == "error")
        elif self.has_scores and None in row.facts.scores:
            self._leave_out(Rejection(origin, "row", "no scores, which the loss needs"))
        else:
            return True
        return False

    def _leave_out(self, rejection: Rejection, *, refused: bool = False) -> None:
        """List a row that gives no pair.

        Raises:
            CaldpoError: such a row stops the run.
        """
        if self._rejected is not None and self._lists:
            append_rejection("train", rejection, self._rejected)
        if refused:
            raise CaldpoError(
                f"{rejection.origin}: {rejection.reason}",
                key="data.on_shared_prompts",
                value=self._on_shared,
                remedy="set data.on_shared_prompts=drop_train to leave such rows out",
            )
        if rejection.kind in ("line", "row") and self._on_invalid == "error":
            raise CaldpoError(
                f"{rejection.origin} cannot be used: {rejection.reason}",
                key="data.on_invalid",
                value="error",
                remedy="mend the row, or set data.on_invalid=skip to leave such rows out, counted and listed",
            )


def refuse_unstreamed(settings: Mapping[str, tuple[Any, Any, str]]) -> None:
    """Refuse settings that need all pairs at once: by key, their value, that of a stream, and what to do."""
    for key, (value, possible, remedy) in settings.items():
        if value != possible:
            raise CaldpoError("cannot be had with data.streaming=true", key=key, value=value, remedy=remedy)
