"""Train on two ranks with a non-finite loss on the second one, once stopping and once skipping.

By torchrun, with a folder for ``stop`` and ``skip``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from caldpo.data.batching import StepPlan
from caldpo.errors import CaldpoError
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from tests.helpers.tiny import tiny_pairs
from tests.nonfinite.spoiled_runs import PairsWithOrigins, guarded_module, pairs_with_spoiled


def main(folder: Path, action: str) -> None:
    folder.mkdir(exist_ok=True)
    module = guarded_module(action)
    settings = TrainerSettings(progress_bar=False, devices=2, strategy="ddp", max_steps=3)
    trainer = settings.build(folder, [MetricsFile(folder)], [])
    try:
        trainer.fit(module, PairsWithOrigins(pairs_with_spoiled(24, [second_rank_pair(step=1)]), tiny_pairs(4), 2))
        message = f"{module.nonfinite.skipped} skipped, {module.global_step} steps"
    except CaldpoError as error:
        message = error.message
    (folder / f"message-{os.environ['RANK']}.txt").write_text(message)


def second_rank_pair(step: int) -> int:
    """A pair that the second rank has at ``step``."""
    sampler = StepPlan(24, 2, world_size=2, seed=0).sampler(rank=1)
    return int(list(sampler)[step].rows[0])


if __name__ == "__main__":
    for policy in ("skip", "stop"):
        main(Path(sys.argv[1]) / policy, policy)
