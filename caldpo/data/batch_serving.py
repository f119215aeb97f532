"""Tokenised pairs served in batches: to Lightning's loops, and to work beside training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from rich.console import Console
from rich.text import Text

from caldpo.data.batch_sampler import MicroBatch, StepBatchSampler
from caldpo.data.collate import Layout, PairBatches
from caldpo.data.pair_loader import PairLoader
from caldpo.data.step_plan import StepPlan, plan_steps
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.types import PairBatch
from caldpo.utils.collectives import is_first_rank


class ServedPairs(LightningDataModule):
    """A training and a test split, and how they are divided into batches.

    Args:
        micro_batch_size: pairs of a micro-batch in training.
        max_tokens_per_micro_batch: most tokens of a micro-batch in training; None divides by pairs alone.
        eval_micro_batch_size: pairs of a batch of held-out pairs.
        drop_last: leave out the last optimiser step of an epoch where it has fewer pairs than the others.
        num_workers: processes that put batches together; 0 does it in this one.
        prefetch_factor: batches that each of them keeps ready.
        seed: with the epoch, determines the order of the training pairs.
    """

    def __init__(
        self,
        *,
        micro_batch_size: int,
        max_tokens_per_micro_batch: int | None,
        eval_micro_batch_size: int,
        drop_last: bool,
        num_workers: int,
        prefetch_factor: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.micro_batch_size, self.max_tokens_per_micro_batch = micro_batch_size, max_tokens_per_micro_batch
        self.eval_micro_batch_size, self.drop_last, self.seed = eval_micro_batch_size, drop_last, seed
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.layout: Layout = "padded"  # until the model is known
        self._plan: StepPlan | None = None
        self._pairs: dict[str, TokenizedPairs] = {}
        self._pad_id = 0
        self._loaders: list[PairLoader] = []

    @property
    def train_pairs(self) -> TokenizedPairs:
        """The tokenised training split."""
        return self._split("train")

    @property
    def test_pairs(self) -> TokenizedPairs:
        """The tokenised test split."""
        return self._split("test")

    def origin(self, index: int, split: Literal["train", "test"] = "train") -> str:
        """File and line, or split and row, of the pair at ``index`` (as in ``PairBatch.index``)."""
        return self._split(split).origin(index)

    def plan_steps(
        self,
        layout: Layout,
        *,
        accumulation: int,
        world_size: int,
        max_epochs: int,
        max_steps: int | None,
        lengths: np.ndarray | None = None,
    ) -> StepPlan:
        """Settle how the optimiser steps of a run are divided, now that the model says which layout it can have.

        The Trainer has to accumulate as many micro-batches as the plan says.

        Args:
            layout: of the batches.
            accumulation: micro-batches of ``micro_batch_size`` pairs per device that a step is made of.
            world_size: devices of the run.
            max_epochs: passes over the pairs, where there is no ``max_steps``.
            max_steps: optimiser steps.
            lengths: of the pairs to plan for, ``(pairs, 3)``; None: those of the training split.

        Raises:
            CaldpoError: ``drop_last`` with fewer pairs than one step has.
        """
        self.layout = layout
        lengths = self.train_pairs.lengths() if lengths is None else lengths
        self._plan = plan = self._step_plan(lengths, accumulation, world_size, max_epochs, max_steps)
        if plan.pairs < plan.step_size and is_first_rank():
            parts = (
                f"data.micro_batch_size={self.micro_batch_size} x accumulation {accumulation} x {world_size} devices"
            )
            note = (
                f"note: an optimiser step asks for {plan.step_size:,} pairs ({parts}), and the training split has"
                f" {plan.pairs:,}: every step has these, an epoch is one step; lower data.micro_batch_size or"
                " trainer.accumulate_grad_batches for more"
            )
            Console().print(Text(note))
        return self._plan

    def train_dataloader(self) -> PairLoader:
        """This rank's training batches in an order of seed and epoch."""
        world_size, rank = self._ranks()
        sampler = (self._plan or self._plan_of_trainer(world_size)).sampler(rank)
        if sampler.dropped and rank == 0:
            note = f"data.drop_last: each epoch leaves out {sampler.dropped:,} of {len(self.train_pairs):,} pairs"
            Console().print(Text(note))
        return self._loader("train", sampler)

    def val_dataloader(self) -> PairLoader:
        """This rank's share of the whole test split; padded batches have pairs of like length."""
        world_size, rank = self._ranks()
        lengths = self.test_pairs.lengths()
        plan = plan_steps(
            lengths,
            micro_batch_size=self.eval_micro_batch_size,
            max_tokens_per_micro_batch=None,
            layout=self.layout,
            accumulation=-(-len(lengths) // (self.eval_micro_batch_size * world_size)),  # all of it dealt at once
            world_size=world_size,
            seed=None,
            drop_last=False,
            max_epochs=1,
            max_steps=None,
        )
        return self._loader("test", plan.sampler(rank))

    def batches(self, split: str, rows: Sequence[int]) -> Iterator[PairBatch]:
        """These rows of a split in their order, in batches of evaluation's size: for work beside training."""
        made = self._batches(split)
        for start in range(0, len(rows), self.eval_micro_batch_size):
            these = tuple(rows[start : start + self.eval_micro_batch_size])
            yield made[MicroBatch(these, (1.0,) * len(these), len(these))]

    def transfer_batch_to_device(self, batch: PairBatch, device: torch.device, dataloader_idx: int) -> PairBatch:
        # Lightning waits for the copy of anything but a tensor; from pinned memory nothing has to wait
        return batch.to(device, non_blocking=device.type == "cuda")

    def _split(self, name: str) -> TokenizedPairs:
        if name not in self._pairs:
            raise RuntimeError("prepare_pairs has to be called first")
        return self._pairs[name]

    def _plan_of_trainer(self, world_size: int) -> StepPlan:
        """What fits the Trainer at hand, where no run has planned its steps."""
        if self.max_tokens_per_micro_batch is not None:
            raise RuntimeError("plan_steps has to be called first: a budget of tokens settles the accumulation")
        accumulation = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return self._step_plan(self.train_pairs.lengths(), accumulation, world_size, max_epochs=1, max_steps=None)

    def _step_plan(
        self, lengths: np.ndarray, accumulation: int, world_size: int, max_epochs: int, max_steps: int | None
    ) -> StepPlan:
        return plan_steps(
            lengths,
            micro_batch_size=self.micro_batch_size,
            max_tokens_per_micro_batch=self.max_tokens_per_micro_batch,
            layout=self.layout,
            accumulation=accumulation,
            world_size=world_size,
            seed=self.seed,
            drop_last=self.drop_last,
            max_epochs=max_epochs,
            max_steps=max_steps,
        )

    def _ranks(self) -> tuple[int, int]:
        """How many ranks there are, and which this is."""
        ranks = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"num_replicas": 1, "rank": 0}
        return ranks["num_replicas"], ranks["rank"]

    def _batches(self, name: str) -> PairBatches:
        return PairBatches(self._split(name), self._pad_id, self.layout, name)

    def close_loaders(self) -> None:
        """End the workers of every loader handed out so far. Their batches are no longer needed."""
        while self._loaders:
            self._loaders.pop().close()

    def _loader(self, name: str, sampler: StepBatchSampler) -> PairLoader:
        loader = PairLoader(
            self._batches(name),
            sampler,
            workers=self.num_workers,
            prefetch=self.prefetch_factor,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
        self._loaders.append(loader)
        return loader
