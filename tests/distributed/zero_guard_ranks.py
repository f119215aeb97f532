"""Train on two ranks with a non-finite loss on the second one. By torchrun, with a folder.

Skips that step under ``ddp`` and under ZeRO-2, with and without offloading, and keeps the weights; then stops at it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from caldpo.errors import CaldpoError
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from tests.helpers.tiny import tiny_pairs
from tests.nonfinite.guard_ranks import second_rank_pair
from tests.nonfinite.spoiled_runs import PairsWithOrigins, guarded_module, pairs_with_spoiled

ZERO = "deepspeed_stage_2"
RUNS = {
    "ddp": ("skip", "ddp", False),
    "zero": ("skip", ZERO, False),
    "offload": ("skip", ZERO, True),
    "stop": ("stop", ZERO, False),
}


def main(folder: Path, action: str, strategy: str, offload: bool) -> None:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    module = guarded_module(action)
    settings = TrainerSettings(
        progress_bar=False,
        devices=2,
        strategy=strategy,  # type: ignore[arg-type]
        max_steps=4,
        gradient_clip_val=0.05,  # clips every step
        cpu_offload=offload,
    )
    trainer = settings.build(folder, [MetricsFile(folder)], [])
    try:
        trainer.fit(module, PairsWithOrigins(pairs_with_spoiled(24, [second_rank_pair(step=1)]), tiny_pairs(4), 2))
        message = f"{module.nonfinite.skipped} skipped, {module.global_step} steps"
    except CaldpoError as error:
        message = error.message
    rank = os.environ["RANK"]
    (folder / f"message-{rank}.txt").write_text(message)
    torch.save({k: v.clone() for k, v in module.policy.state_dict().items()}, folder / f"weights-{rank}.pt")


if __name__ == "__main__":
    for name, way in RUNS.items():
        main(Path(sys.argv[1]) / name, *way)
