"""Compute the reference's log-probs once and store them for all runs with the same weights and tokens."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.config.bounds import NonNegativeInt
from caldpo.config.run_lifecycle import write_json
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.logprobs import LogprobEngine
from caldpo.models.adapted_policy import adapter_off, is_adapted
from caldpo.models.model_forward import evaluating
from caldpo.reference.fingerprint import MANIFEST, difference, key_of, model_configuration, model_facts, weights_digest
from caldpo.reference.logprob_store import LogpStore
from caldpo.reference.reference_base import Logps, Reference, ReferenceContext, ReferenceSource
from caldpo.reference.reference_load import load_other, match_policy
from caldpo.reference.tolerances import exceeds_rounding, relative_difference, rounding_tolerance
from caldpo.types import PairBatch
from caldpo.utils.collectives import all_gather, fresh_seed, is_first_rank, shard_items, true_on_any_rank
from caldpo.utils.delayed_progress import DelayedProgress
from caldpo.utils.stream_console import Console
from caldpo.utils.text_format import counted


class PrecomputedReference:
    """Looks log-probs up by a pair's index in its split; the arguments are :class:`Precomputed`'s.

    The policy's own starting weights are run by the policy itself, before its first step; another model is loaded
    for the computation and released after it. Batches of other splits are run through the model.
    """

    def __init__(self, context: ReferenceContext, path: str | None, cache: Path, spot_check: int) -> None:
        self.context, self.path, self.cache, self.spot_check = context, path, cache, spot_check
        self.dtype = context.policy.dtype
        self.rounding = rounding_tolerance(context)
        self._tables: dict[str, Tensor] = {}  # by split: log-probs of chosen and rejected, (2, pairs)
        self._weights = ""
        self._facts: dict[str, str] = {}
        self._live: PreTrainedModel | None = None
        self._engine: LogprobEngine | None = None  # of the live model

    def prepare(self) -> None:
        """Read or compute the log-probs of every split that the run needs.

        Raises:
            CaldpoError: the cache cannot be written to, or a log-prob is non-finite.
        """
        if self._tables:
            return
        with self._starting_weights() as model:
            if self.context.sharded:
                self.context.place(model)
            facts = model_facts(model, self.context.device, self.context.precision())
            self._weights = facts["weights"]
            self._facts = {**model_configuration(model), "weights": self._weights}
            self.context.place(model)
            engine = LogprobEngine(model)
            for split in self.context.needed_splits:
                self._tables[split] = self._table(split, facts, engine).to(self.context.device)

    def facts(self) -> dict[str, str]:
        return self._facts

    def logps(self, batch: PairBatch) -> Logps:
        table = self._tables.get(batch.split)
        if table is None:
            with self.live() as model, evaluating(model):
                self._engine = self._engine or LogprobEngine(model)
                return self._engine(batch)
        chosen, rejected = table[:, batch.index]
        return chosen, rejected

    @contextmanager
    def live(self) -> Iterator[PreTrainedModel]:
        """Yield the reference as a model: loaded again at the first call, or the policy with its adapter disabled."""
        if self.path is None and is_adapted(self.context.policy):
            with adapter_off(self.context.policy) as model:
                yield model
            return
        if self._live is None:
            self._live = self._load()
        yield self._live

    def _load(self) -> PreTrainedModel:
        if self.path is not None:
            model = load_other(self.path, self.context)
        else:
            model = match_policy(self.context.reload(), self.context.policy)
        self.context.place(model)
        if self._weights and weights_digest(model) != self._weights:
            raise CaldpoError(
                "the reference's weights, loaded again, differ from those that the run started with",
                key="reference",
                value="precomputed",
                remedy="pin the model's revision, do not change its folder during a run, or use reference=frozen",
            )
        return model

    @contextmanager
    def _starting_weights(self) -> Iterator[PreTrainedModel]:
        """Yield the model to compute with: the policy itself at its start, or another one, released afterwards."""
        if self.path is not None:
            yield load_other(self.path, self.context)
            return
        policy = self.context.policy
        with adapter_off(policy) if is_adapted(policy) else nullcontext(), evaluating(policy):
            yield policy

    def _table(self, split: str, shared_facts: dict[str, str], engine: LogprobEngine) -> Tensor:
        pairs = self.context.splits[split]
        facts = shared_facts | {"split": split, "tokens": pairs.digest()}
        key = key_of(facts)
        folder = self.cache / f"{split}-{key[:16]}"
        values_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        store = LogpStore(folder, key, len(pairs), values_dtype, _report)
        try:
            if not (folder / MANIFEST).exists():
                other = difference(self.cache, split, facts)
                reason = "none are stored yet" if other is None else f"stored ones differ in {other}"
                number = counted(len(pairs), f"{split} pair")
                _report(f"computed once for {number} and stored in {folder} ({reason})", first_rank=True)
                if not self.context.sharded or is_first_rank():
                    folder.mkdir(parents=True, exist_ok=True)
                    write_json(folder / MANIFEST, {"determined by": facts, "from": dict(self.context.facts)})
            else:
                stored = sum(len(part.rows) for part in store.parts if part.path.exists())
                rest = "" if stored == len(pairs) else f", the other {len(pairs) - stored:,} computed and stored there"
                _report(f"{counted(stored, f'{split} pair')} read from {folder}{rest}", first_rank=True)
            return self._fill(split, store, engine)
        except OSError as error:
            raise _cannot_write(str(self.cache), error.strerror or str(error)) from error

    def _fill(self, split: str, store: LogpStore, engine: LogprobEngine) -> Tensor:
        """Read or compute all values of a split; compute them again where the model gives others."""
        pairs = self.context.splits[split]
        with DelayedProgress(f"Reference log-probs, {split}", len(pairs)) as bar:

            def compute(rows: range) -> Tensor:
                return self._compute(split, list(rows), engine, bar)

            fill = store.fill_together if self.context.sharded else store.fill
            parts = fill(compute)
            values = torch.cat([part.values for part in parts], dim=1)
            new = true_on_any_rank([part.computed for part in parts])  # one rank reads what another has computed
            rows_read = [row for part, fresh in zip(store.parts, new, strict=True) if not fresh for row in part.rows]
            # a new seed for each run, so that over many runs many pairs are checked; the same on all ranks
            checked = sorted(random.Random(fresh_seed()).sample(rows_read, min(self.spot_check, len(rows_read))))
            fault = self._fault(split, checked, values, engine) if checked else None
            if true_on_any_rank([fault is not None])[0]:
                _report(f"{store.folder}: {fault or 'wrong on another rank'}; all of it is computed again")
                parts = fill(compute, [part.checksum for part, fresh in zip(parts, new, strict=True) if not fresh])
                values = torch.cat([part.values for part in parts], dim=1)
        return values

    def _fault(self, split: str, rows: list[int], values: Tensor, engine: LogprobEngine) -> str | None:
        """Recompute some rows; describe by how much the values differ, None if they do not."""
        fresh = self._compute(split, rows, engine)
        differences = (fresh - values[:, rows]).abs()
        sizes = relative_difference(differences, fresh)
        if not exceeds_rounding(sizes.max().item(), sizes.mean().item(), self.rounding):
            return None
        return f"of {len(rows)} pairs, recomputed, log-probs differ by up to {differences.max().item():.3g} nats"

    def _compute(
        self, split: str, rows: list[int], engine: LogprobEngine, bar: DelayedProgress | None = None
    ) -> Tensor:
        """Compute log-probs of these rows, shape ``(2, rows)``, in batches of similar length."""
        context, pairs = self.context, self.context.splits[split]
        lengths = pairs.lengths()[rows].sum(axis=1)
        by_length = [row for _, row in sorted(zip(lengths.tolist(), rows, strict=True))]
        by_row: dict[int, Tensor] = {}
        batches = context.batches(split, by_length)
        with context.precision(), torch.no_grad():
            for batch in shard_items(batches) if context.sharded else batches:
                both = torch.stack(engine(batch.to(context.device))).cpu()
                by_row |= zip(batch.index.tolist(), both.T, strict=True)
                if bar is not None:
                    bar.advance(batch.pairs)
        if context.sharded:
            by_row = {row: value for part in all_gather(by_row) for row, value in part.items()}
        values = torch.stack([by_row[row] for row in rows], dim=1)
        if not bool(values.isfinite().all()):
            bad = rows[int((~values.isfinite()).any(dim=0).nonzero()[0])]
            raise CaldpoError(
                f"the reference computes a non-finite log-prob for the {split} pair from {pairs.origin(bad)}",
                remedy="check that pair and the model's dtype: float16 overflows where bfloat16 does not",
            )
        return values


@validated
@dataclass
class Precomputed(ReferenceSource):
    """``reference=precomputed``: log-probs on disk, of the policy's own starting weights or of another model.

    Args:
        path, distinct: as of :class:`~caldpo.reference.reference_base.ReferenceSource`.
        cache: folder of the log-probs, shared by all runs that name it.
        spot_check: pairs recomputed whenever log-probs are read; 0: none.
    """

    cache: str = "outputs/cache/reference"
    spot_check: NonNegativeInt = 8

    def check(self) -> None:
        super().check()
        cache = Path(self.cache).absolute()
        existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
        # a read-only folder is fine as long as nothing is missing from it
        if not existing.is_dir() or (existing != cache and not os.access(existing, os.W_OK)):
            raise _cannot_write(self.cache, f"{existing} is not a writable folder")

    def build(self, context: ReferenceContext) -> Reference:
        """Build the reference; its ``prepare`` computes, on all ranks together."""
        return PrecomputedReference(context, self.path, Path(self.cache), self.spot_check)


def _cannot_write(cache: str, reason: str) -> CaldpoError:
    return CaldpoError(
        f"cannot be written to: {reason}",
        key="reference.cache",
        value=cache,
        remedy="name a writable folder, or use reference=frozen",
    )


def _report(text: str, *, first_rank: bool = False) -> None:
    """Print a line about the reference; ``first_rank``: only on the first rank, where all would print the same."""
    if not first_rank or is_first_rank():
        Console().print(f"reference log-probs: {text}", soft_wrap=True, highlight=False, markup=False)
