"""Trains a tiny policy on fixed pairs and saves its weights: run alone, or by torchrun on several ranks.

python -m tests.helpers.train_ranks FOLDER MICRO ACCUMULATION RANKS [LAYOUT TOKENS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from caldpo.data.collate import Layout
from caldpo.data.data_loading import TokenizedDataModule
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from caldpo.logprobs.layout import choose_layout
from caldpo.losses.cpo import CPO
from tests.helpers.tiny import tiny_pairs
from tests.helpers.tiny_trainer import make_module


class Pairs(TokenizedDataModule):
    """Random pairs, 21 in steps of 8: the last has 5, which no division evens out."""

    def __init__(self, micro: int, tokens: int | None) -> None:
        super().__init__(
            max_length=32,
            micro_batch_size=micro,
            max_tokens_per_micro_batch=tokens,
            eval_micro_batch_size=3,
            drop_last=False,
            num_workers=0,
            prefetch_factor=2,
            seed=0,
        )
        self._pairs = {"train": TokenizedPairs(tiny_pairs(21)), "test": TokenizedPairs(tiny_pairs(7))}


def main(
    folder: Path, micro: int, accumulation: int, ranks: int, layout: Layout = "padded", tokens: int | None = None
) -> None:
    module = make_module(CPO())
    module.metrics_sync_every = ranks + 1  # rows do not depend on when they are fetched
    data = Pairs(micro, tokens)
    for model in (module.policy, module.reference.model):
        choose_layout(layout, model, max_length=32)
    plan = data.plan_steps(layout, accumulation=accumulation, world_size=ranks, max_epochs=2, max_steps=None)
    settings = TrainerSettings(
        progress_bar=False,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=2,
        accumulate_grad_batches=accumulation,
        val_check_interval=2,
    )
    trainer = settings.build(folder, [MetricsFile(folder)], [], plan.accumulation)
    trainer.fit(module, data)
    if trainer.is_global_zero:
        torch.save(module.policy.state_dict(), folder / "weights.pt")
        print(f"micro-batches of a step: {plan.accumulation}")


if __name__ == "__main__":
    division, budget = map(int, sys.argv[2:5]), sys.argv[5:]
    main(Path(sys.argv[1]), *division, *((budget[0], int(budget[1])) if budget else ()))
