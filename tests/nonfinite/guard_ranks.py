"""Train on two ranks with a non-finite loss on the second one; its arguments are a folder and the name of the runs.

``ddp`` stops once and skips once. ``zero`` skips that step under ``ddp`` and under ZeRO-2, with and without offloading,
and then stops at it; every step is clipped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from caldpo.data.batching import StepPlan
from caldpo.errors import CaldpoError
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from tests.helpers.forked import ROOT, run_ranks
from tests.helpers.tiny import tiny_pairs
from tests.nonfinite.spoiled_runs import PairsWithOrigins, guarded_module, pairs_with_spoiled

DDP: dict[str, Any] = {"strategy": "ddp", "max_steps": 3}
CLIPPED: dict[str, Any] = {"max_steps": 4, "gradient_clip_val": 0.05}
ZERO: dict[str, Any] = {"strategy": "deepspeed_stage_2", **CLIPPED}
RUNS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "ddp": {"skip": ("skip", DDP), "stop": ("stop", DDP)},
    "zero": {
        "ddp": ("skip", DDP | CLIPPED),
        "zero": ("skip", ZERO),
        "offload": ("skip", ZERO | {"cpu_offload": True}),
        "stop": ("stop", ZERO),
    },
}


def train_on_ranks(runs: str, folder: Path) -> str:
    """Start these runs on two ranks; return what they print."""
    done = run_ranks(2, __name__, str(folder), runs, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main(folder: Path, action: str, settings: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    module = guarded_module(action)
    trainer = TrainerSettings(progress_bar=False, devices=2, **settings).build(folder, [MetricsFile(folder)], [])
    try:
        trainer.fit(module, PairsWithOrigins(pairs_with_spoiled(24, [second_rank_pair(step=1)]), tiny_pairs(4), 2))
        message = f"{module.nonfinite.skipped} skipped, {module.global_step} steps"
    except CaldpoError as error:
        message = error.message
    rank = os.environ["RANK"]
    (folder / f"message-{rank}.txt").write_text(message)
    torch.save({k: v.clone() for k, v in module.policy.state_dict().items()}, folder / f"weights-{rank}.pt")


def second_rank_pair(step: int) -> int:
    """A pair that the second rank has at ``step``."""
    sampler = StepPlan(24, 2, world_size=2, seed=0).sampler(rank=1)
    return int(list(sampler)[step].rows[0])


if __name__ == "__main__":
    for name, run in RUNS[sys.argv[2]].items():
        main(Path(sys.argv[1]) / name, *run)
