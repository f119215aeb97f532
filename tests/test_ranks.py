"""Two processes (gloo, CPU) train to the weights and log the metrics of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.helpers.forked import ROOT, run_ranks


def run(folder: Path, micro: int, accumulation: int, ranks: int, *budget: str) -> str:
    words = [str(folder), *map(str, (micro, accumulation, ranks)), *budget]
    folder.mkdir()
    done = run_ranks(ranks, "tests.helpers.train_ranks", *words, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def by_torchrun(cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "one"
    run(folder, 8, 1, 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("budget", [(), ("packed", "20"), ("padded", "60")], ids=lambda b: " ".join(b) or "by count")
def test_two_ranks_equal_one(one_rank: Path, tmp_path: Path, budget: tuple[str, ...]) -> None:
    """Steps of 8 pairs with a last one of 5; the loss has a token-mean term."""
    said = run(tmp_path / "two", 2, 2, 2, *budget)
    assert ("micro-batches of a step: 2" in said) == (not budget)
    folders = one_rank, tmp_path / "two"
    one, two = (torch.load(folder / "weights.pt", weights_only=True) for folder in folders)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)
    tables = [pd.read_csv(folder / "metrics.csv") for folder in folders]
    for name in (
        "loss",
        "terms/nll",
        "logps/chosen",
        "grad_norm",
        "val/rewards/margins",
        "val/log_ratios/chosen",
    ):
        first, second = (t.set_index("step")[name].dropna() for t in tables)
        assert list(first.index) == list(second.index)
        assert list(first.index) == ([2, 4, 6] if name.startswith("val/") else [0, 1, 2, 3, 4, 5])
        assert first.tolist() == pytest.approx(second.tolist(), rel=2e-3, abs=1e-3), name


@pytest.mark.slow
def test_the_command_on_two_ranks(tmp_path: Path) -> None:
    """One W&B run and one set of files, and the true rewards of all held-out pairs, not of one rank's share.

    Started by torchrun itself, and as it would start it.
    """
    small = ["model.sft_steps=20", "data.source.train_pairs=32", "data.source.test_pairs=33", "trainer.max_steps=2"]
    words = [*small, "callbacks.oracle.prompts=16", "trainer.progress_bar=false", "console=compact"]
    found = []
    for ranks, strategy in ((1, "auto"), (2, "ddp"), (2, "fsdp")):
        devices = [f"trainer.devices={ranks}", f"data.micro_batch_size={16 // ranks}", f"trainer.strategy={strategy}"]
        command = ["caldpo.train", *words, *devices, f"hydra.run.dir={strategy}"]
        done = by_torchrun(tmp_path, *command) if strategy == "ddp" else run_ranks(ranks, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("log-ratios") == 1
        folder = tmp_path / strategy
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1
        found.append(json.loads((folder / "summary.json").read_text())["metrics"])
    for name in ("val/loss", "val/log_ratios/chosen", "oracle/slope", "oracle/pearson", "oracle/error", "oracle/kl"):
        for other in found[1:]:
            assert other[name] == pytest.approx(found[0][name], rel=2e-3, abs=1e-4), name
