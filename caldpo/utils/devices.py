"""Devices of this machine: what ``auto`` stands for on it, and how much memory they have given, or lack."""

from __future__ import annotations

import resource
import sys

import torch
from omegaconf import DictConfig

AUTO = "auto"
# How PyTorch and the libraries below it name exhausted memory, where they raise no type of their own for it.
_OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed", "bad_alloc")


def resolve_accelerator(setting: str) -> str:
    """Resolve the accelerator to ``cpu`` or ``gpu``: ``auto`` is a CUDA GPU where there is one."""
    if setting != AUTO:
        return setting
    return "gpu" if torch.cuda.is_available() else "cpu"


def resolve_precision(setting: str, accelerator: str) -> str:
    """Resolve Lightning's name of a precision; ``auto`` is ``bf16-mixed`` on a GPU with bfloat16, else ``32-true``.

    A GPU that is not here, in an estimate, is taken to have bfloat16.
    """
    if setting != AUTO:
        return setting
    here = torch.cuda.is_available()
    has_bfloat16 = not here or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if accelerator == "gpu" and has_bfloat16 else "32-true"


def resolve_devices(cfg: DictConfig) -> None:
    """Replace ``auto`` in the configuration, so that the run's files say it and a resumed run is compared with it."""
    trainer = cfg.trainer
    trainer.accelerator = resolve_accelerator(trainer.accelerator)
    trainer.precision = resolve_precision(trainer.precision, trainer.accelerator)


def reset_peak_memory() -> None:
    """Measure the GPU's peak memory from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> tuple[int, str]:
    """Return peak bytes and of what: of the GPU's allocations where there is one, else of the process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), "GPU allocations of this run"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "whole process so far"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
