"""Explain an out-of-memory error of a run: where the memory goes, and what to change."""

from __future__ import annotations

import gc
import os
import traceback

import torch
from omegaconf import DictConfig

from caldpo.components import Components
from caldpo.errors import CaldpoError
from caldpo.estimation.estimate_run import estimate_needs
from caldpo.estimation.memory_breakdown import MemoryBreakdown
from caldpo.estimation.memory_verdict import GIB, advice


def out_of_memory_error(error: BaseException, cfg: DictConfig, components: Components) -> CaldpoError:
    """Make the error to raise from ``error``: the estimate by part, and the changes that save most.

    Releases what the failed run holds first, as far as its frames hold it.
    """
    traceback.clear_frames(error.__traceback__)  # the frames of the failed step hold activations and gradients
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    try:
        needs = estimate_needs(cfg, components, len(components.data.train_pairs))
        changes = advice(needs.memory, components)
        text = f"{_by_part(needs.memory)}, and {_device_total(components.trainer.accelerator)}"
    except Exception as failure:  # no memory, or no data yet: the cause matters more
        message = str(failure).splitlines()[0] if str(failure) else ""
        text = f"the estimate by part failed ({type(failure).__name__}: {message})"
        changes = ["a smaller data.micro_batch_size with more trainer.accumulate_grad_batches"]
    return CaldpoError(
        f"out of memory ({cause.rstrip('.')}); {text}",
        remedy="; or ".join(changes)
        or "free memory on the device or take a larger one: the estimate has no change to advise",
    )


def _by_part(memory: MemoryBreakdown) -> str:
    """Write the breakdown as a sentence, the largest part first."""
    parts = sorted((item for item in memory.parts.items() if item[1]), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {size / GIB:,.3f}" for name, size in parts)
    unknown = f" (activations are not known: {memory.activations_unknown})" if memory.activations_unknown else ""
    return f"by the estimate the run needs about {memory.total / GIB:,.3f} GiB on each device: {listed}{unknown}"


def _device_total(accelerator: str) -> str:
    """Name the total memory of the device, whoever uses it."""
    if accelerator == "gpu" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()} has {total / GIB:,.2f} GiB, {free / GIB:,.2f} of them free now"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"this machine has {total / GIB:,.2f} GiB of RAM, less what others use and limits on this process"
