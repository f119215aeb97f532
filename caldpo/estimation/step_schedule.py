"""Steps and tokens of a run, from the lengths of a sample of its pairs and the run's own plan of steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from caldpo.data.batching import StepPlan
from caldpo.data.collate import Layout
from caldpo.data.data_console import DataReport, SplitReport
from caldpo.data.datamodule import PairDataModule
from caldpo.data.joined_sources import parts_of
from caldpo.errors import CaldpoError
from caldpo.estimation.run_flops import batch_workload, computed_tokens

_MAX_SEARCHED = 1_000_000  # pairs searched for the largest micro-batch: some epochs of a usual data set


@dataclass(frozen=True, slots=True)
class DataSample:
    """A run's data, of which a sample is tokenised."""

    report: DataReport  # of the sampled pairs
    train_pairs: int  # of the full split, less the share that tokenisation dropped of the sample
    test_pairs: int

    def truncated(self) -> dict[str, int]:
        """Truncated prompts and responses of the full training split, scaled up from the sample."""
        counts, scale = self.report.train.counts, self.train_pairs / self.report.train.pairs
        parts = ("prompts", "chosen", "rejected")
        return {part: round(getattr(counts, f"{part}_truncated") * scale) for part in parts}


def sample_data(
    data: PairDataModule,
    tokenizer: PreTrainedTokenizerBase,
    run_dir: Path,
    *,
    pairs: int,
    needs_scores: bool,
    loss_name: str,
    needs_rejected: bool = True,
    score_range: tuple[float, float] | None = None,
    takes_unpaired: bool = False,
) -> DataSample:
    """Read and check the data as a run does, and tokenise ``pairs`` random pairs of each split.

    Reading full splits is fast compared with tokenising them, and needed for the number of pairs. The data module holds
    the sample afterwards.

    Raises:
        CaldpoError: any fault of the data; pairs that a model would have to generate first.
    """
    refuse_ungenerated(data)
    limits = {"train": data.max_train_pairs, "test": data.max_test_pairs}
    data.max_train_pairs, data.max_test_pairs = (min(pairs, limit or pairs) for limit in limits.values())
    report = data.prepare_pairs(
        tokenizer,
        run_dir,
        needs_scores=needs_scores,
        loss_name=loss_name,
        needs_rejected=needs_rejected,
        score_range=score_range,
        takes_unpaired=takes_unpaired,
    )
    return DataSample(
        report,
        train_pairs=_full_pairs(report.train, data.max_train_pairs, limits["train"]),
        test_pairs=_full_pairs(report.test, data.max_test_pairs, limits["test"]),
    )


def _full_pairs(split: SplitReport, drawn: int, limit: int | None) -> int:
    """Pairs that a run has of a split."""
    usable = drawn + split.left_out
    if not split.left_out or limit == drawn:
        return split.pairs
    return round(min(usable, limit or usable) * split.pairs / drawn)


def refuse_ungenerated(data: PairDataModule) -> None:
    """Refuse pairs that a language model has yet to generate: their lengths are unknown."""
    for key, split in (("data.train", data.train), ("data.test", data.test)):
        if split is not None and not all(data.source.is_generated(part.name) for part in parts_of(split, key)):
            raise CaldpoError(
                "a language model generates these pairs at their first use, which has not been, so their lengths are"
                " unknown",
                key=key,
                value=split,
                remedy="start a run, which generates them; the estimate reads them from the cache from then on",
            )


@dataclass(frozen=True, slots=True)
class StepSchedule:
    """Steps of a run, and tokens of an epoch over all devices."""

    pairs: int
    micro_batches: int  # of one device in an epoch
    steps_per_epoch: int
    steps: int
    prompt_tokens: int  # each prompt counted once per pair
    response_tokens: int
    computed_tokens: int  # positions that the model processes: prompts as often as they are repeated, and padding
    attended: int  # query-key pairs of attention, in one layer and head
    largest: tuple[int, ...]  # indices, in the sample, of the pairs of the largest micro-batch
    largest_tokens: int  # its computed tokens
    largest_kept: tuple[int, ...]  # likewise of those that do not recompute their activations; empty where that is it
    recomputed: tuple[float, float]  # shares of computed and of attended whose activations are recomputed
    exact: bool  # the sample is the full split
    exact_steps: bool  # the number of steps is exact, whether or not the number of pairs is

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps / self.steps_per_epoch


def step_schedule(
    lengths: np.ndarray, plan: StepPlan, layout: Layout, *, exact_steps: bool, recompute_above: int | None = None
) -> StepSchedule:
    """Count the tokens of the run's micro-batches.

    A split larger than its sample is represented by the sample repeated, so that the largest micro-batch is the
    largest of as many as the run will have.

    Args:
        lengths: tokens of prompt, chosen and rejected of the sampled pairs, shape ``(sampled, 3)``.
        plan: of the run, over the full split.
        exact_steps: the number of steps does not depend on the number of pairs.
        recompute_above: tokens above which a micro-batch recomputes its activations; None: all do the same.
    """
    per_epoch = np.zeros(4, dtype=np.int64)  # prompt, response, computed, attended
    recomputed = np.zeros(2, dtype=np.int64)  # computed, attended
    largest: tuple[int, ...] = ()
    largest_kept: tuple[int, ...] = ()
    largest_tokens = kept_tokens = 0
    samplers = [plan.sampler(rank) for rank in range(plan.world_size)]
    for epoch in range(max(1, min(plan.epochs, _MAX_SEARCHED // plan.pairs))):
        for sampler in samplers:
            sampler.set_epoch(epoch)
            for batch in sampler:
                if plan.world_size == 1 and not any(batch.weights):
                    continue  # filler that no other rank waits for is not computed
                indices = [row % len(lengths) for row in batch.rows]
                of_batch = lengths[indices]
                tokens = computed_tokens(of_batch, layout)
                if tokens > largest_tokens:
                    largest, largest_tokens = tuple(indices), tokens
                recomputes = recompute_above is not None and tokens > recompute_above
                if kept_tokens < tokens and not recomputes:
                    largest_kept, kept_tokens = tuple(indices), tokens
                if epoch == 0:
                    real = of_batch[np.array(batch.weights) > 0]
                    attended = int(batch_workload(of_batch, layout).attended)
                    per_epoch += (real[:, 0].sum(), real[:, 1:].sum(), tokens, attended)
                    if recomputes:
                        recomputed += (tokens, attended)
    exact = plan.pairs == len(lengths)
    return StepSchedule(
        pairs=plan.pairs,
        micro_batches=plan.steps_per_epoch * plan.accumulation,
        steps_per_epoch=plan.steps_per_epoch,
        steps=plan.steps,
        prompt_tokens=int(per_epoch[0]),
        response_tokens=int(per_epoch[1]),
        computed_tokens=int(per_epoch[2]),
        attended=int(per_epoch[3]),
        largest=largest,
        largest_tokens=largest_tokens,
        largest_kept=() if kept_tokens == largest_tokens else largest_kept,
        recomputed=(recomputed[0] / per_epoch[2], recomputed[1] / per_epoch[3]),
        exact=exact,
        exact_steps=exact or exact_steps,
    )


def repeated_lengths(lengths: np.ndarray, pairs: int) -> np.ndarray:
    """Repeat the lengths of a sample up to ``pairs`` pairs."""
    return lengths[np.arange(pairs) % len(lengths)]
