"""The plain top-level keys of a benchmark; this signature is their schema. No heavy imports here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

VariantName = Literal[
    "trl",
    "trl_no_checkpointing",
    "trl_precomputed",
    "trl_low_memory",
    "trl_best",
    "caldpo",
    "caldpo_checkpointing",
    "caldpo_low_memory",
    "caldpo_resident",
    "caldpo_padded",
    "caldpo_token_budget",
]


@validated
@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured, how often, and on what.

    Args:
        variants: what runs, in this order; the first of TRL is what the others are compared with.
        micro_batch_size: pairs of an optimiser step, the same for every variant.
        steps: timed optimiser steps.
        warmup_steps: optimiser steps before the clock starts.
        repeats: rounds; in each, every variant runs once.
        device: cpu, cuda, or auto (cuda where there is one).
        num_threads: CPU threads of PyTorch.
        lr: constant learning rate of AdamW.
        beta: of the DPO loss.
        seed: of weights, synthetic pairs, and the order of the pairs.
        data_file: preference pairs of the user's own; None makes synthetic ones.
        tokenizer: hub id or folder of the tokenizer for ``data_file``.
        tolerance: largest relative difference of a loss or gradient norm that counts as agreement, of the first
            step and of later ones; None goes by the dtype, see :mod:`caldpo.bench.loss_agreement`.
    """

    variants: list[VariantName]
    micro_batch_size: PositiveInt
    steps: PositiveInt
    warmup_steps: PositiveInt
    repeats: PositiveInt
    device: Literal["auto", "cpu", "cuda"]
    num_threads: PositiveInt
    lr: Positive
    beta: Positive
    seed: NonNegativeInt
    data_file: str | None
    tokenizer: str | None
    tolerance: tuple[Positive, Positive] | None

    def __post_init__(self) -> None:
        if not self.variants:
            raise CaldpoError("names nothing to run", key="variants", value=self.variants)
        if len(set(self.variants)) < len(self.variants):
            raise CaldpoError("names a variant twice", key="variants", value=self.variants)
        file = None if self.data_file is None else Path(self.data_file).expanduser()
        if file is not None and not file.is_file():
            wrong = "a folder, not a file" if file.is_dir() else "no such file"
            raise CaldpoError(wrong, key="data_file", value=self.data_file, remedy="name a file of preference pairs")
        if self.data_file is not None and self.tokenizer is None:
            raise CaldpoError(
                "has to be given with data_file",
                key="tokenizer",
                remedy="add tokenizer=FOLDER, a hub id or a folder, to the command line",
            )

    @property
    def all_steps(self) -> int:
        """Optimiser steps of a run, warm-up included."""
        return self.warmup_steps + self.steps

    @property
    def pairs(self) -> int:
        """Pairs of a run: every step has pairs of its own."""
        return self.all_steps * self.micro_batch_size
