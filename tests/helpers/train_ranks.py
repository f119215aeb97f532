"""Trains a tiny policy on fixed pairs and saves its weights: run alone, or by torchrun on several ranks.

python -m tests.helpers.train_ranks FOLDER MICRO ACCUMULATION RANKS [LAYOUT TOKENS] [LOSS]

With the name of a loss, in float64, from a policy that is not the reference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from caldpo.data.collate import Layout
from caldpo.data.data_loading import TokenizedDataModule
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from caldpo.logprobs.layout import choose_layout
from caldpo.losses.aot import AOT
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.bco import BCO
from caldpo.losses.cpo import CPO
from caldpo.losses.kto import KTO
from tests.helpers.tiny import tiny_pairs
from tests.helpers.tiny_trainer import make_module, shift_from_reference

LOSSES: dict[str, Callable[[], PreferenceLoss]] = {
    "kto": lambda: KTO(beta=0.3, undesirable_weight=0.8),
    "bco": lambda: BCO(beta=0.3),
    "aot": lambda: AOT(beta=0.3),
    "aot_unpaired": lambda: AOT(beta=0.3, variant="unpaired"),
}


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
    folder: Path,
    micro: int,
    accumulation: int,
    ranks: int,
    layout: Layout = "padded",
    tokens: int | None = None,
    loss: str | None = None,
) -> None:
    module = make_module(CPO() if loss is None else LOSSES[loss]())
    if loss is not None:
        shift_from_reference(module)
    module.metrics_sync_every = ranks + 1  # rows do not depend on when they are fetched
    data = Pairs(micro, tokens)
    for model in (module.policy, module.reference.model):
        choose_layout(layout, model, max_length=32)
    plan = data.plan_steps(
        layout,
        accumulation=accumulation,
        world_size=ranks,
        max_epochs=2,
        max_steps=None,
        reads_ahead=module.loss.depends_on_batch,
        mismatched=module.loss.needs_mismatched,
    )
    settings = TrainerSettings(
        progress_bar=False,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=2,
        accumulate_grad_batches=accumulation,
        val_check_interval=2,
        precision="32-true" if loss is None else "64-true",
    )
    trainer = settings.build(folder, [MetricsFile(folder)], [], plan.accumulation)
    trainer.fit(module, data)
    if trainer.is_global_zero:
        remembered = {f"loss.{name}": value for name, value in module.loss.state_dict().items()}
        torch.save(module.policy.state_dict() | remembered, folder / "weights.pt")
        print(f"micro-batches of a step: {plan.accumulation}")


if __name__ == "__main__":
    division, rest = map(int, sys.argv[2:5]), sys.argv[5:]
    named = {"loss": rest.pop()} if rest and rest[-1] in LOSSES else {}
    main(Path(sys.argv[1]), *division, *((rest[0], int(rest[1])) if rest else ()), **named)
