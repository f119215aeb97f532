"""Small runs that are killed and resumed, and what has to come out of them."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from caldpo.checkpointing.manifest import checkpoint_folders
from tests.helpers.forked import context, free_port, torchrun_variables
from tests.resume.child import Kill, run

BASE = (
    "model=random",
    "model.tokenizer=tokenizer",
    "model.hidden_size=16",
    "data=local",
    "data.train=train.jsonl",
    "data.test=test.jsonl",
    "data.micro_batch_size=4",
    "data.eval_micro_batch_size=16",
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=2",
    "trainer.progress_bar=false",
    "logger=csv",
    "callbacks.samples.prompts=2",
    "callbacks.samples.max_new_tokens=4",
    "callbacks.checkpoint.every=3",
    "optim.lr=0.01",
)
NOT_THE_RUN = ("tokens_per_second",)  # columns that tell of the clock


@dataclass(frozen=True)
class Ended:
    """How a run's processes ended, and what they said."""

    codes: tuple[int, ...]
    said: str


def train(
    folder: Path,
    *arguments: str,
    kill: Kill | None = None,
    ranks: int = 1,
    patience: float = 240,
    command: str = "caldpo.train",
) -> Ended:
    """Run a command in ``folder`` in processes of its own, one a rank.

    ``kill`` strikes the first, SIGKILL then the others.
    """
    output = folder / "said.txt"
    output.unlink(missing_ok=True)
    port = free_port()
    processes = []
    for rank in range(ranks):
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        if ranks > 1:
            environment |= torchrun_variables(rank, ranks, port)
        mine = kill if rank == 0 else None
        process = context().Process(
            target=run, args=([*arguments], str(folder), str(output), environment, mine, command)
        )
        process.start()
        processes.append(process)
    until = time.monotonic() + patience
    killed = kill is not None and kill.number == signal.SIGKILL
    processes[0].join(patience)
    for process in processes[1:]:
        if killed and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join(max(until - time.monotonic(), 1))
    codes = tuple(process.exitcode for process in processes)
    for process in processes:
        if process.is_alive():
            process.kill()
    return Ended(codes, output.read_text(errors="replace"))


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything that two runs have to agree on to the last bit."""
    last = list(checkpoint_folders(run_dir).values())[-1]
    training = torch.load(last / "training.pt", weights_only=True)
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in NOT_THE_RUN} for row in csv.DictReader(file)]
    policy = next((run_dir / "policy").glob("*.safetensors"))
    summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "status": summary["status"],
        "steps": summary["steps"],
        "rows": rows,
        "samples": (run_dir / "samples.jsonl").read_text(),
        "policy": _bits(load_file(policy)),
        "weights": _bits(load_file(last / "weights.safetensors")),
        "optimiser": _bits(training["optimizer_states"]),
        "schedule": training["lr_schedulers"],
        "loops": training["loops"]["fit_loop"],
        "final": {k: v for k, v in summary["metrics"].items() if k not in NOT_THE_RUN},
    }


def _bits(value: Any) -> Any:
    """Nested containers with tensors as their bytes: -0.0 is not 0.0, and NaN is NaN."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, list | tuple) else value
