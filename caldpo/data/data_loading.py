"""Load tokenised pairs in batches: for Lightning's loops, and for work outside training."""

from __future__ import annotations

import copy
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from rich.text import Text
from torch.utils.data import DataLoader, Dataset, get_worker_info

from caldpo.data.batching import ByTokens, MicroBatch, StepBatchSampler, StepPlan
from caldpo.data.collate import Layout, collate
from caldpo.data.pair import TokenizedPair
from caldpo.data.pair_stream import ENDLESS, PairStream
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError
from caldpo.types import PairBatch
from caldpo.utils.collectives import all_gather, is_first_rank
from caldpo.utils.stream_console import Console
from caldpo.utils.text_format import counted


class PairBatches(Dataset["PairBatch | CaldpoError"]):
    """A split as a dataset of batches: the sampler names the rows of a batch.

    ``max_length``: tokens that a prompt and a mismatched response may have together.
    """

    def __init__(
        self,
        pairs: TokenizedPairs | PairStream,
        pad_id: int,
        layout: Layout = "padded",
        split: str = "",
        max_length: int = sys.maxsize,
    ) -> None:
        self.pairs, self.pad_id, self.layout, self.split, self.max_length = pairs, pad_id, layout, split, max_length

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, batch: MicroBatch) -> PairBatch | CaldpoError:
        """Collate a batch; an error of a worker is the item, since PyTorch would hand on its text alone."""
        try:
            return self.collated(batch)
        except CaldpoError as error:
            if get_worker_info() is None:
                raise
            return error

    def collated(self, batch: MicroBatch) -> PairBatch:
        pairs = [self.pairs[row] for row in batch.rows]
        collated = self._collate(pairs, batch, self.split)
        if batch.others:
            others = (self.pairs[row] for row in batch.others)
            mixed = [with_responses(pair, other, self.max_length) for pair, other in zip(pairs, others, strict=True)]
            collated.mismatched = self._collate(mixed, batch, split="")  # a reference remembers the split's own pairs
        return collated

    def _collate(self, pairs: Sequence[TokenizedPair], batch: MicroBatch, split: str) -> PairBatch:
        return collate(
            pairs,
            self.pad_id,
            layout=self.layout,
            split=split,
            weight=batch.weights,
            step_pairs=batch.step_pairs,
            with_scores=self.pairs.has_scores,
            places=batch.places,
        )


def with_responses(pair: TokenizedPair, other: TokenizedPair, max_length: int) -> TokenizedPair:
    """The prompt of one pair with the responses of another, cut to ``max_length`` tokens together."""
    room = max(1, max_length - len(pair.prompt_ids))
    return replace(
        other,
        prompt_ids=pair.prompt_ids,
        chosen_ids=other.chosen_ids[:room],
        rejected_ids=other.rejected_ids[:room],
    )


class PairLoader:
    """Iterates over one epoch of batches at a time and counts them, so that a run resumes in mid-epoch.

    Lightning finds ``sampler`` to set the epoch, and ``state_dict`` and ``load_state_dict`` to put the position in the
    epoch into a checkpoint. Not being a ``DataLoader``, it is never rebuilt with another sampler. Batches are counted
    here rather than in the sampler, which workers make run ahead of training. Where the plan says so, the first batch
    of an optimiser step brings all of them.
    """

    batch_sampler = None  # Lightning looks at it beside ``sampler``

    def __init__(
        self,
        batches: PairBatches,
        sampler: StepBatchSampler,
        *,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self.sampler = sampler
        self._position = (sampler.epoch, sampler.start)  # epoch, batches consumed in it
        self._loader = DataLoader(
            batches,
            batch_size=None,  # the sampler yields whole batches
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=pin_memory,
            # Each pass draws a seed for its workers; drawn from the global generator, it would shift dropout.
            generator=torch.Generator(),
            worker_init_fn=_ignore_signals,
        )
        weakref.finalize(self, _end_workers, self._loader)  # at the latest when the process ends

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[PairBatch]:
        # A generator starts with the first batch, after Lightning has set the epoch.
        epoch, start = self.sampler.epoch, self.sampler.start
        self._position = (epoch, start)
        try:
            for consumed, batch in enumerate(self._read(start), start + 1):
                self._position = (epoch, consumed)
                yield batch
        finally:
            self.sampler.start = 0

    def _read(self, start: int) -> Iterator[PairBatch]:
        batches = map(_raised, self._loader)
        plan = self.sampler.plan
        if not plan.reads_ahead:
            yield from batches
            return
        if start % plan.accumulation:
            raise RuntimeError("a loss that reads whole optimiser steps can only go on at the end of one")
        while step := tuple(islice(batches, plan.accumulation)):
            first = copy.copy(step[0])
            first.ahead = step
            yield from (first, *step[1:])

    def close(self) -> None:
        """End the workers."""
        _end_workers(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of batches consumed in it."""
        return self.sampler.state(*self._position)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that were consumed when the state was taken."""
        self.sampler.load_state(state_dict)
        self._position = (self.sampler.epoch, self.sampler.start)


def _raised(batch: PairBatch | CaldpoError) -> PairBatch:
    if isinstance(batch, CaldpoError):
        raise batch
    return batch


def _ignore_signals(worker: int) -> None:
    """Ignore signals in a worker: one to the whole process group asks the run to save, which needs its workers."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end_workers(loader: DataLoader[PairBatch | CaldpoError]) -> None:
    """Kill the workers of a loader: they ignore SIGTERM, and Python would wait for them forever at its exit."""
    iterator: Any = loader._iterator  # kept where workers persist; a DataLoader has no public way to close it
    if iterator is not None:
        iterator._shutdown_workers()  # as Lightning ends those of a DataLoader; does nothing once Python shuts down
        for worker in iterator._workers:
            worker.kill()
        loader._iterator = None


class TokenizedDataModule(LightningDataModule):
    """A training and a test split of tokenised pairs, and how they are batched: see ``conf/data/base.yaml``."""

    def __init__(
        self,
        *,
        max_length: int,
        micro_batch_size: int,
        max_tokens_per_micro_batch: int | Literal["auto"] | None,
        eval_micro_batch_size: int,
        drop_last: bool,
        num_workers: int,
        prefetch_factor: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.max_length = max_length  # tokens of a prompt and its longer response
        self.micro_batch_size, self.max_tokens_per_micro_batch = micro_batch_size, max_tokens_per_micro_batch
        self.eval_micro_batch_size, self.drop_last, self.seed = eval_micro_batch_size, drop_last, seed
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.layout: Layout = "padded"  # until the model is known
        self.token_budget: int | None = None  # that ``auto`` stands for in this run; None until it is chosen
        self.cut_by: int | None = None  # tokens by which the training's micro-batches are cut; None: by count
        self.mismatched = False  # whether the loss reads other prompts' responses, until it is known
        self._plan: StepPlan | None = None
        self._pairs: dict[str, TokenizedPairs] = {}
        self.stream: PairStream | None = None  # of the training pairs, whose first ones are in train_pairs then
        self._pad_id = 0
        self._loaders: list[PairLoader] = []

    @property
    def budget(self) -> int | None:
        """Most tokens of a micro-batch, but for a pair that has more; None: any number."""
        return self.token_budget if self.max_tokens_per_micro_batch == "auto" else self.max_tokens_per_micro_batch

    @property
    def train_pairs(self) -> TokenizedPairs:
        """The tokenised training split, or the first pairs of a stream."""
        return self._split("train")

    @property
    def test_pairs(self) -> TokenizedPairs:
        """The tokenised test split."""
        return self._split("test")

    def origin(self, index: int, split: Literal["train", "test"] = "train") -> str:
        """Return file and line, or split and row, of the pair at ``index`` (as in ``PairBatch.index``)."""
        return self.stream.origin(index) if self.stream and split == "train" else self._split(split).origin(index)

    def plan_steps(
        self,
        layout: Layout,
        *,
        accumulation: int,
        world_size: int,
        max_epochs: float,
        max_steps: int | None,
        overfit_batches: int | None = None,
        lengths: np.ndarray | None = None,
        choose_budget: Callable[[StepPlan], int] | None = None,
        reads_ahead: bool = False,
        mismatched: bool = False,
    ) -> StepPlan:
        """Plan the optimiser steps of a run, once the model has settled the layout.

        The Trainer has to accumulate as many micro-batches as the plan says.

        Args:
            layout: of the batches.
            accumulation: micro-batches of ``micro_batch_size`` pairs per device in a step.
            world_size, max_epochs, max_steps: see :class:`~caldpo.data.batching.StepPlan`.
            overfit_batches: train on the pairs of so many steps alone, the first of the split, in its order.
            lengths: of the pairs to plan for, ``(pairs, 3)``; None: those of the training split.
            choose_budget: gives :attr:`token_budget` for the plan by count, where that is to be chosen and is not yet.
            reads_ahead, mismatched: the loss ``depends_on_batch`` and ``needs_mismatched`` responses.

        Raises:
            CaldpoError: ``drop_last`` with fewer pairs than one step has.
        """
        self.layout, self.mismatched = layout, mismatched
        is_stream = self.stream is not None
        plan = self.plan_by_count(
            accumulation=accumulation,
            world_size=world_size,
            max_epochs=max_epochs,
            max_steps=max_steps,
            overfit_batches=overfit_batches,
            lengths=lengths,
            reads_ahead=reads_ahead,
            mismatched=mismatched,
        )
        lengths = self.train_pairs.lengths() if lengths is None else lengths
        if overfit_batches is not None:
            lengths = lengths[: overfit_batches * plan.step_size]
        if self.max_tokens_per_micro_batch == "auto" and self.token_budget is None and choose_budget is not None:
            self.token_budget = choose_budget(plan)
        if is_stream:  # the lengths of later pairs are not known, but none has more tokens than this
            if self.token_budget is not None:
                plan = plan.in_pairs(max(1, self.token_budget // (2 * self.max_length)))
        elif self.max_tokens_per_micro_batch != "auto":
            plan = plan.for_lengths(lengths, layout, self.max_tokens_per_micro_batch)
        else:
            plan = self._within_budget(plan, lengths)
        self._plan = plan
        self.cut_by = plan.micro_batching.budget if isinstance(plan.micro_batching, ByTokens) else None
        if plan.pairs < plan.step_size and is_first_rank():
            devices = counted(world_size, "device")
            factors = f"data.micro_batch_size={self.micro_batch_size} x accumulation {accumulation} x {devices}"
            note = (
                f"note: an optimiser step asks for {counted(plan.step_size, 'pair')} ({factors}), and the training"
                f" split has {plan.pairs:,}: each step uses all of them, so one epoch is one step; lower"
                " data.micro_batch_size or trainer.accumulate_grad_batches for more steps"
            )
            Console().print(Text(note))
        return plan

    def plan_by_count(
        self,
        *,
        accumulation: int,
        world_size: int,
        max_epochs: float,
        max_steps: int | None,
        overfit_batches: int | None = None,
        lengths: np.ndarray | None = None,
        reads_ahead: bool = False,
        mismatched: bool = False,
    ) -> StepPlan:
        """Plan as :meth:`plan_steps`, before a model is there: how many steps there are does not depend on one."""
        endless = self.stream is not None and lengths is None
        pairs = ENDLESS if endless else len(self.train_pairs if lengths is None else lengths)
        if overfit_batches is not None:
            pairs = min(pairs, overfit_batches * self.micro_batch_size * accumulation * world_size)
        return StepPlan(
            pairs,
            self.micro_batch_size,
            accumulation=accumulation,
            world_size=world_size,
            seed=None if endless or overfit_batches else self.seed,  # a stream has an order of its own
            drop_last=self.drop_last,
            max_epochs=max_epochs,
            max_steps=max_steps,
            reads_ahead=reads_ahead,
            mismatched=mismatched,
        )

    def setup(self, stage: str) -> None:
        """Refuse budgets that differ, before ranks share any work: they would wait for each other forever.

        Raises:
            CaldpoError: nodes of different memory have chosen different budgets.
        """
        budgets = all_gather(self.token_budget)
        if len(set(budgets)) > 1:
            raise CaldpoError(
                f"the nodes have different memory: by rank, they chose {', '.join(map(str, budgets))} tokens",
                key="data.max_tokens_per_micro_batch",
                value="auto",
                remedy=f"set data.max_tokens_per_micro_batch={min(filter(None, budgets))}",
            )

    def train_dataloader(self) -> PairLoader:
        """Load this rank's training batches in the order of seed and epoch."""
        if self._plan is None:
            raise RuntimeError("plan_steps has to be called first")
        _, rank = self._ranks()
        if (dropped := self._plan.dropped) and rank == 0:
            note = f"data.drop_last: each epoch leaves out {dropped:,} of {counted(self._plan.pairs, 'pair')}"
            Console().print(Text(note))
        return self._loader("train", self._plan.sampler(rank))

    def val_dataloader(self) -> PairLoader:
        """Load this rank's share of the whole test split; padded batches group pairs of similar length."""
        world_size, rank = self._ranks()
        lengths = self.test_pairs.lengths()
        one_step = -(-len(lengths) // (self.eval_micro_batch_size * world_size))
        plan = StepPlan(
            len(lengths),
            self.eval_micro_batch_size,
            accumulation=one_step,
            world_size=world_size,
            mismatched=self.mismatched,
        )
        return self._loader("test", self._within_budget(plan, lengths).sampler(rank))

    def transfer_batch_to_device(self, batch: PairBatch, device: torch.device, dataloader_idx: int) -> PairBatch:
        # Lightning waits for the copy of anything but a tensor; from pinned memory nothing has to wait
        return batch.to(device, non_blocking=device.type == "cuda")

    def close_loaders(self) -> None:
        """End the workers of every loader so far. Their batches are no longer needed."""
        while self._loaders:
            self._loaders.pop().close()

    def _within_budget(self, plan: StepPlan, lengths: np.ndarray) -> StepPlan:
        if self.token_budget is None:
            return plan.for_lengths(lengths, self.layout)
        return plan.within(self.token_budget, lengths, self.layout)

    def _split(self, name: str) -> TokenizedPairs:
        if name not in self._pairs:
            raise RuntimeError("prepare_pairs has to be called first")
        return self._pairs[name]

    def _ranks(self) -> tuple[int, int]:
        """Return the number of ranks, and this rank."""
        ranks = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"num_replicas": 1, "rank": 0}
        return ranks["num_replicas"], ranks["rank"]

    def batches(self, split: str, rows: Sequence[int]) -> Iterator[PairBatch]:
        """Yield these rows of a split, in order, for work outside training.

        A batch has ``eval_micro_batch_size`` pairs, or fewer where they would exceed :attr:`token_budget`.
        """
        dataset = self._dataset(split)
        budget = sys.maxsize if self.token_budget is None else self.token_budget
        by_tokens = ByTokens.of(budget, self._split(split).lengths(), self.layout)
        for batch in by_tokens.in_order(rows, self.eval_micro_batch_size):
            yield dataset.collated(MicroBatch(tuple(batch), (1.0,) * len(batch), len(batch)))

    def _dataset(self, name: str) -> PairBatches:
        pairs = self.stream if self.stream is not None and name == "train" else self._split(name)
        return PairBatches(pairs, self._pad_id, self.layout, name, self.max_length)

    def _loader(self, name: str, sampler: StepBatchSampler) -> PairLoader:
        loader = PairLoader(
            self._dataset(name),
            sampler,
            workers=self.num_workers,
            prefetch=self.prefetch_factor,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
        self._loaders.append(loader)
        return loader
