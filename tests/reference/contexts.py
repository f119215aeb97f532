"""Contexts to build references from: a tiny policy and random pairs, without a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from caldpo.data.batching import MicroBatch
from caldpo.data.data_loading import PairBatches
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.reference import logprob_store
from caldpo.reference.fingerprint import MANIFEST, key_of, read_manifest
from caldpo.reference.precomputed import Precomputed, PrecomputedReference
from caldpo.reference.reference_base import ReferenceContext
from caldpo.types import PairBatch
from tests.helpers.tiny import tiny_model, tiny_pairs

TRAIN, TEST = 23, 7


def make_context(
    policy: Any = None,
    *,
    train: Any = None,
    test: Any = None,
    needed_splits: tuple[str, ...] = ("train", "test"),
    reload: Callable[[], Any] | None = None,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    pairs_seen: int = 100,
) -> ReferenceContext:
    """Make a context with batches of at most five pairs; ``reload`` copies the policy as of now."""
    policy = tiny_model() if policy is None else policy
    start = copy.deepcopy(policy) if reload is None else None
    splits = {
        "train": TokenizedPairs(tiny_pairs(TRAIN, seed=1) if train is None else train),
        "test": TokenizedPairs(tiny_pairs(TEST, seed=2) if test is None else test),
    }

    def batches(split: str, rows: Sequence[int]) -> Iterator[PairBatch]:
        made = PairBatches(splits[split], 0, split=split)
        for place in range(0, len(rows), 5):
            these = tuple(rows[place : place + 5])
            yield made[MicroBatch(these, (1.0,) * len(these), len(these))]

    return ReferenceContext(
        policy=policy,
        reload=reload or (lambda: copy.deepcopy(start)),
        splits=splits,
        needed_splits=needed_splits,
        batches=batches,
        device=torch.device("cpu"),
        precision=precision,
        pairs_seen=pairs_seen,
        facts={"tokenizer": "tiny"},
    )


def batch_of(context: ReferenceContext, split: str, rows: Sequence[int], filler: int = 0) -> PairBatch:
    """Rows of a split in this order; the last ``filler`` of them have weight 0."""
    weights = (1.0,) * (len(rows) - filler) + (0.0,) * filler
    return PairBatches(context.splits[split], 0, split=split)[MicroBatch(tuple(rows), weights, len(rows) - filler)]


class CountedEngine:
    """Stands in for a log-prob engine and keeps the number of pairs of each call, by split."""

    def __init__(self, real: Any) -> None:
        self.real, self.calls = real, []

    def __call__(self, model: Any) -> Any:
        engine = self.real(model)

        def counted(batch: PairBatch) -> Any:
            self.calls.append((batch.split, batch.pairs))
            return engine(batch)

        return counted

    def pairs(self, split: str) -> int:
        """Pairs that went through the model."""
        return sum(pairs for name, pairs in self.calls if name == split)


def prepared(cache: Path, context: Any, spot_check: int = 0, **keys: Any) -> PrecomputedReference:
    """Build a precomputed reference, its log-probs in place."""
    reference = Precomputed(cache=str(cache), spot_check=spot_check, **keys).build(context)
    assert isinstance(reference, PrecomputedReference)
    reference.prepare()
    return reference


def same(actual: Any, expected: Any, rel: float = 1e-5) -> None:
    """Both sides agree to a relative rounding."""
    torch.testing.assert_close(torch.stack(list(actual)), torch.stack(list(expected)), rtol=rel, atol=1e-5)


def rewrite(cache: Path, split: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Write other values to every part of a split, with valid checksums."""
    (folder,) = cache.glob(f"{split}-*")
    facts = read_manifest(folder / MANIFEST)
    pairs = {"train": TRAIN, "test": TEST}[split]
    kept = logprob_store.LogpStore(folder, key_of(facts), pairs, torch.float32, print)
    for part in kept.parts:
        actual = kept.read(part)
        assert actual is not None
        kept.write(part, change(actual.values))
