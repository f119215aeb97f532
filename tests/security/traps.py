"""Pickles that leave a mark when they are opened, under every name that something might open them by."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import torch

# in a run's folder
IN_RUN = (
    "checkpoints/step-1.ckpt",
    "checkpoints/last.ckpt",
    "checkpoints/step-1/training.pt",
    "checkpoints/step-1/optimizer.pt",
    "checkpoints/step-1/pytorch_model.bin",
    "checkpoints/step-1/weights.bin",
    "hpc_ckpt_1.ckpt",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "data.pkl",
    "batch.pt",
    "policy/pytorch_model.bin",
    "policy/adapter_model.bin",
    "policy/training_args.bin",
    "policy/optimizer.pt",
    "policy/tokenizer.pkl",
    ".hydra/config.pickle",
    ".hydra/hydra.pickle",
    ".submitit/1/1_submitted.pkl",
    ".submitit/1/1_0_result.pkl",
    "evaluation/preference.pkl",
    "evaluation/results.pickle",
    "evaluation/samples/held_out_pairs.pkl",
    "wandb/run-1/files/model.pkl",
    "numbers/batch.pt",
    "metrics.npy",
)
# Python files that would run when imported, and what has them imported
CODE = ("policy/modeling_trap.py", "sitecustomize.py", "conftest.py", "policy/__init__.py", "__init__.py")


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def raw(mark: Path) -> bytes:
    """The trap as a plain pickle."""
    return pickle.dumps(Trap(mark))


def zipped(mark: Path) -> bytes:
    """The trap as ``torch.save`` writes it, under the keys of checkpoints."""
    file = io.BytesIO()
    torch.save({"state_dict": Trap(mark), "optimizer_states": [Trap(mark)]}, file)
    return file.getvalue()


def plant(run: Path, mark: Path, *, replace: bool = False) -> list[Path]:
    """Put traps into a run's folder, which touch ``mark`` when they are sprung.

    Args:
        run: the folder.
        mark: the file that must not be there afterwards.
        replace: also in the place of files that are there already.

    Returns:
        The traps.
    """
    planted = []
    for number, name in enumerate(IN_RUN):
        path = run / name
        if replace or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(zipped(mark) if number % 2 == 0 else raw(mark))
            planted.append(path)
    for name in CODE:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
        planted.append(path)
    return planted
