"""The reference's log-probs computed once, kept on disk, and shared by all runs with the same weights and tokens."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
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
from caldpo.reference.reference_base import Logps, ReferenceContext
from caldpo.reference.reference_load import check_path, describe, like, load_other, require_path
from caldpo.reference.tolerances import beyond, relative, rounding_of
from caldpo.types import PairBatch
from caldpo.utils.collectives import all_gather, fresh_seed, is_first_rank, shard_items, true_on_any_rank
from caldpo.utils.delayed_progress import DelayedProgress


class PrecomputedReference:
    """Looks log-probs up by a pair's place in its split.

    The policy's own starting weights are run by the policy itself, before its first step; another model is loaded
    for the work and released after it. Batches that belong to no split that was prepared are answered live.

    Args:
        context: policy, tokens and precision of the run.
        path: hub id or folder of another reference; None is the policy's start.
        cache: folder that holds one folder for each split's log-probs.
        spot_check: pairs that are recomputed whenever log-probs were read.
    """

    def __init__(self, context: ReferenceContext, path: str | None, cache: Path, spot_check: int) -> None:
        self.context, self.path, self.cache, self.spot_check = context, path, cache, spot_check
        self.dtype = context.policy.dtype
        self.rounding = rounding_of(context)
        self._tables: dict[str, Tensor] = {}  # by split: log-probs of chosen and rejected, (2, pairs)
        self._weights = ""
        self._facts: dict[str, str] = {}
        self._live: PreTrainedModel | None = None
        self._engine: LogprobEngine | None = None  # of the live model

    def prepare(self) -> None:
        """Read or compute the log-probs of every split that will be asked for.

        Raises:
            CaldpoError: the cache cannot be written to, or a log-prob is not a number.
        """
        if self._tables:
            return
        with self._starting_weights() as model:
            if self.context.together:
                self.context.place(model)
            facts = model_facts(model, self.context.device, self.context.precision())
            self._weights = facts["weights"]
            self._facts = {**model_configuration(model), "weights": self._weights}
            self.context.place(model)
            engine = LogprobEngine(model)
            for split in self.context.asked:
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
        """The reference as a model: loaded again when first asked for, or the policy with its adapter switched off."""
        if self.path is None and is_adapted(self.context.policy):
            with adapter_off(self.context.policy) as model:
                yield model
            return
        if self._live is None:
            self._live = self._loaded()
        yield self._live

    def _loaded(self) -> PreTrainedModel:
        if self.path is not None:
            model = load_other(self.path, self.context)
        else:
            model = like(self.context.policy, self.context.reload())
        self.context.place(model)
        if self._weights and weights_digest(model) != self._weights:
            raise CaldpoError(
                "the reference's weights, loaded once more, are others than the run started with",
                key="reference",
                value="precomputed",
                remedy="pin the model's revision, leave its folder alone while a run goes on, or use reference=frozen",
            )
        return model

    @contextmanager
    def _starting_weights(self) -> Iterator[PreTrainedModel]:
        """The reference for computing: no copy where it is the policy's start, released where it is another model."""
        policy = self.context.policy
        if self.path is not None:
            yield load_other(self.path, self.context)
        elif is_adapted(policy):
            with adapter_off(policy), evaluating(policy):
                yield policy
        else:
            with evaluating(policy):
                yield policy

    def _table(self, split: str, model_said: dict[str, str], engine: LogprobEngine) -> Tensor:
        pairs = self.context.splits[split]
        facts = model_said | {"split": split, "tokens": pairs.digest()}
        key = key_of(facts)
        folder = self.cache / f"{split}-{key[:16]}"
        values_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        store = LogpStore(folder, key, len(pairs), values_dtype, _say)
        try:
            if not (folder / MANIFEST).exists():
                other = difference(self.cache, split, facts)
                why = "none are kept yet" if other is None else f"those that are kept differ in {other}"
                _say(f"computed once for {len(pairs):,} {split} pairs and kept in {folder} ({why})", first_rank=True)
                if not self.context.together or is_first_rank():
                    folder.mkdir(parents=True, exist_ok=True)
                    write_json(folder / MANIFEST, {"determined by": facts, "from": dict(self.context.facts)})
            else:
                there = sum(len(part.rows) for part in store.parts if part.path.exists())
                rest = "" if there == len(pairs) else f", the other {len(pairs) - there:,} computed and kept there"
                _say(f"{there:,} {split} pairs read from {folder}{rest}", first_rank=True)
            return self._filled(split, store, engine)
        except OSError as error:
            raise _cannot_write(str(self.cache), error.strerror or str(error)) from error

    def _filled(self, split: str, store: LogpStore, engine: LogprobEngine) -> Tensor:
        """All values of a split, computed anew where they are not what the model gives."""
        pairs = self.context.splits[split]
        with DelayedProgress(f"Reference log-probs, {split}", len(pairs)) as bar:

            def compute(rows: range) -> Tensor:
                return self._compute(split, list(rows), engine, bar)

            fill = store.fill_together if self.context.together else store.fill
            found = fill(compute)
            values = torch.cat([f.values for f in found], dim=1)
            device = self.context.device
            new = true_on_any_rank([f.computed for f in found], device)  # one rank reads what another has computed
            old = [(part, f) for part, f, computed in zip(store.parts, found, new, strict=True) if not computed]
            kept = [row for part, _ in old for row in part.rows]
            # a seed of its own: over many runs, many pairs are looked at; by all ranks the same
            checked = sorted(random.Random(fresh_seed(device)).sample(kept, min(self.spot_check, len(kept))))
            fault = self._fault(split, checked, values, engine) if checked else None
            if true_on_any_rank([fault is not None], device)[0]:
                _say(f"{store.folder}: {fault or 'wrong on another rank'}; all of it is computed anew")
                again = fill(compute, [f.checksum for _, f in old])
                values = torch.cat([f.values for f in again], dim=1)
        return values

    def _fault(self, split: str, rows: list[int], values: Tensor, engine: LogprobEngine) -> str | None:
        """What is wrong with the values at some rows, by a pass over those pairs."""
        fresh = self._compute(split, rows, engine)
        apart = (fresh - values[:, rows]).abs()
        sizes = relative(apart, fresh)
        if not beyond(sizes.max().item(), sizes.mean().item(), self.rounding):
            return None
        return f"of {len(rows)} pairs, recomputed, log-probs differ by up to {apart.max().item():.3g} nats"

    def _compute(
        self, split: str, rows: list[int], engine: LogprobEngine, bar: DelayedProgress | None = None
    ) -> Tensor:
        """Log-probs of these rows, shape ``(2, rows)``, in batches of similar length."""
        context, pairs = self.context, self.context.splits[split]
        lengths = pairs.lengths()[rows].sum(axis=1)
        by_length = [row for _, row in sorted(zip(lengths.tolist(), rows, strict=True))]
        found: dict[int, Tensor] = {}
        batches = context.batches(split, by_length)
        with context.precision(), torch.no_grad():
            for batch in shard_items(batches) if context.together else batches:
                both = torch.stack(engine(batch.to(context.device))).cpu()
                found |= zip(batch.index.tolist(), both.T, strict=True)
                if bar is not None:
                    bar.advance(batch.pairs)
        if context.together:
            found = {row: value for part in all_gather(found) for row, value in part.items()}
        values = torch.stack([found[row] for row in rows], dim=1)
        if not bool(values.isfinite().all()):
            bad = rows[int((~values.isfinite()).any(dim=0).nonzero()[0])]
            raise CaldpoError(
                f"the reference gives a log-prob that is not a number for the {split} pair from {pairs.origin(bad)}",
                remedy="look at that pair and at the model's dtype: float16 overflows where bfloat16 does not",
            )
        return values


class Precomputed:
    """``reference=precomputed``: log-probs on disk, of the policy's own starting weights or of another model.

    Args:
        path: hub id or folder of another reference; None is the policy's start.
        distinct: the reference is meant to be another model than the one the policy starts from. Otherwise
            log-ratios have to be 0 before the first step.
        cache: folder of the log-probs, shared by all runs that name it.
        spot_check: pairs recomputed whenever log-probs are read; 0: none.
    """

    @validated
    def __init__(
        self,
        path: str | None = None,
        distinct: bool = False,
        cache: str = "outputs/cache/reference",
        spot_check: NonNegativeInt = 8,
    ) -> None:
        require_path(path, distinct)
        self.path, self.distinct, self.cache, self.spot_check = path, distinct, cache, spot_check

    def identity(self, policy: str) -> str:
        return describe(self.path, policy, self.distinct)

    def check(self) -> None:
        check_path(self.path)
        cache = Path(self.cache).absolute()
        there = next(folder for folder in (cache, *cache.parents) if folder.exists())
        # a folder that can only be read will do as long as nothing is missing from it
        if not there.is_dir() or (there != cache and not os.access(there, os.W_OK)):
            raise _cannot_write(self.cache, f"{there} is no folder that can be written to")

    def build(self, context: ReferenceContext) -> PrecomputedReference:
        """The reference; its ``prepare`` does the work, on all ranks together."""
        return PrecomputedReference(context, self.path, Path(self.cache), self.spot_check)


def _cannot_write(cache: str, why: str) -> CaldpoError:
    return CaldpoError(
        f"cannot write there: {why}",
        key="reference.cache",
        value=cache,
        remedy="name a folder that you may write to, or use reference=frozen",
    )


def _say(text: str, *, first_rank: bool = False) -> None:
    """A line about the reference; ``first_rank``: one that every rank would say alike."""
    if not first_rank or is_first_rank():
        Console().print(f"reference log-probs: {text}", soft_wrap=True, highlight=False, markup=False)
