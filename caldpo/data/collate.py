"""From tokenised pairs to one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from caldpo.data.pair import TokenizedPair
from caldpo.data.sampler import MicroBatch
from caldpo.data.tokens import TokenizedPairs
from caldpo.types import PairBatch


class PairBatches(Dataset[PairBatch]):
    """A split seen as batches: the sampler names the rows of a batch, this puts it together.

    Args:
        pairs: the tokenised split.
        pad_id: what fills the padding; any token will do, since masks are carried.
    """

    def __init__(self, pairs: TokenizedPairs, pad_id: int) -> None:
        self.pairs, self.pad_id = pairs, pad_id

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, batch: MicroBatch) -> PairBatch:
        return collate(
            [self.pairs[row] for row in batch.rows],
            self.pad_id,
            weight=batch.weights,
            step_pairs=batch.step_pairs,
            with_scores=self.pairs.has_scores,
        )


def collate(
    pairs: Sequence[TokenizedPair],
    pad_id: int,
    *,
    weight: Sequence[float] | None = None,
    step_pairs: int | None = None,
    with_scores: bool | None = None,
) -> PairBatch:
    """Stack pairs: all chosen rows, then all rejected rows, padded on the right to the longest.

    Args:
        pairs: at least one.
        pad_id: what fills the padding. Masks come from lengths, so it may equal EOS.
        weight: 1 for a real pair, 0 for filler; default: all real.
        step_pairs: real pairs of the optimiser step the batch belongs to; default: those of this batch.
        with_scores: whether the whole split has scores; default: whether these pairs do.
    """
    sides = [p.chosen_ids for p in pairs], [p.rejected_ids for p in pairs]
    rows = [pair.prompt_ids + ids for side in sides for pair, ids in zip(pairs, side, strict=True)]
    ends = torch.tensor([len(row) for row in rows])
    starts = torch.tensor([len(pair.prompt_ids) for pair in pairs] * 2)
    length = int(ends.max())
    places = torch.arange(length)
    attended = places < ends[:, None]
    if weight is None:
        weight = [1.0] * len(pairs)
    if with_scores is None:
        with_scores = all(None not in (p.score_chosen, p.score_rejected) for p in pairs)
    scores = [(p.score_chosen, p.score_rejected) for p in pairs]
    return PairBatch(
        input_ids=torch.tensor([row + [pad_id] * (length - len(row)) for row in rows]),
        attention_mask=attended,
        response_mask=attended & (places >= starts[:, None]),
        weight=torch.tensor(weight, dtype=torch.float32),
        index=torch.tensor([pair.index for pair in pairs]),
        score_chosen=torch.tensor([c for c, _ in scores], dtype=torch.float32) if with_scores else None,
        score_rejected=torch.tensor([r for _, r in scores], dtype=torch.float32) if with_scores else None,
        step_pairs=sum(w > 0 for w in weight) if step_pairs is None else step_pairs,
    )
