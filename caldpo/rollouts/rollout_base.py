"""Where the pairs of an optimiser step come from: the data, or samples of the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.data.datamodule import PairDataModule
from caldpo.losses.base import PreferenceLoss
from caldpo.optim.optimizer_base import OptimizerChoice
from caldpo.reference.reference_base import Reference, ReferenceSource
from caldpo.types import PairBatch

if TYPE_CHECKING:
    from caldpo.lightning_module import PreferenceModule


@dataclass(frozen=True)
class RolloutContext:
    """What rollouts may be prepared from, before the first step.

    Args:
        run_dir: folder of the run; what is fitted stays in it.
        policy: with the weights it starts from, in the run's dtype.
        reference: of the run, live.
        tokenizer: of the run.
        data: prepared, its steps planned.
        optim: of the run.
        device: where the run computes.
        trainer: builds a Trainer for so many optimiser steps, with the run's other settings.
        resumed: the run has been started before, and what it fitted is in its folder.
    """

    run_dir: Path
    policy: PreTrainedModel
    reference: Reference
    tokenizer: PreTrainedTokenizerBase
    data: PairDataModule
    optim: OptimizerChoice
    device: torch.device
    trainer: Callable[[int], pl.Trainer]
    resumed: bool = False


class NoRollouts:
    """``rollouts=none``: the pairs of the data. Base of those that replace them."""

    on = False  # whether pairs are sampled

    def check(self, loss: PreferenceLoss, reference: ReferenceSource, data: PairDataModule, world_size: int) -> None:
        """Refuse before weights load what cannot be sampled."""

    def describe(self) -> str:
        """Describe in one line, for the start of a run, what is sampled and how it is scored."""
        return "none: the pairs of the data"

    def prepare(self, context: RolloutContext) -> Mapping[str, Any]:
        """Do what takes long, before the first step; returns entries for ``summary.json``."""
        return {}

    def inputs(self) -> dict[str, str]:
        """Digest, by name, what has to be the same when a run resumes and is no part of its configuration."""
        return {}

    def draw(self, batch: PairBatch, batch_idx: int, module: PreferenceModule) -> tuple[PairBatch, dict[str, Tensor]]:
        """Return the pairs to train on in place of a micro-batch's, and metrics of them, each ``(pairs,)``."""
        return batch, {}
