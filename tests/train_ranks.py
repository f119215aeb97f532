"""Trains a tiny policy on fixed pairs and saves its weights: run alone, or by torchrun on several ranks.

python -m tests.train_ranks FOLDER MICRO ACCUMULATION RANKS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from caldpo.loggers import csv_logger
from caldpo.losses.cpo import CPO
from caldpo.training import TrainerSettings
from tests.harness import Pairs, make_module
from tests.tiny import tiny_pairs


def main(folder: Path, micro: int, accumulation: int, ranks: int) -> None:
    module = make_module(CPO())
    data = Pairs(tiny_pairs(21), tiny_pairs(7), micro)  # the last step has 5 pairs, which no division evens out
    settings = TrainerSettings(
        progress_bar=False,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=2,
        accumulate_grad_batches=accumulation,
    )
    trainer = settings.build(folder, [csv_logger(folder)], [])
    trainer.fit(module, data)
    if trainer.is_global_zero:
        torch.save(module.policy.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
