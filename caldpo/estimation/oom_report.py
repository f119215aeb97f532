"""A run that is out of memory ends with where the memory goes and what to change."""

from __future__ import annotations

import gc
import os
import traceback
from typing import Any

import torch
from omegaconf import DictConfig

from caldpo.components import Components
from caldpo.errors import CaldpoError
from caldpo.estimation.estimate_run import needs_of
from caldpo.estimation.memory_breakdown import Needs
from caldpo.estimation.memory_capacity import GIB
from caldpo.estimation.memory_verdict import advice


def out_of_memory_error(error: BaseException, cfg: DictConfig, components: Components) -> CaldpoError:
    """What to raise from ``error``: the estimate by part, and what would make the largest parts smaller.

    What the failed run holds is let go first, as far as its frames hold it.

    Args:
        error: for which :func:`is_out_of_memory` is true.
        cfg: the run's configuration.
        components: of the run; the data is prepared, unless memory ran out before.
    """
    traceback.clear_frames(error.__traceback__)  # activations and gradients hang on the frames of the failed step
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    try:
        sketch = needs_of(cfg, components, len(components.data.train_pairs))
        ways = advice(sketch.needs, components, len(sketch.schedule.largest))
        text = f"{by_part(sketch.needs)}, and {_there(components.trainer)}"
    except Exception as why:  # memory is short, or the data was not there yet: what ran out matters more
        text = f"where it goes cannot be told ({type(why).__name__}: {str(why).splitlines()[0] if str(why) else ''})"
        ways = ["a smaller data.micro_batch_size with more trainer.accumulate_grad_batches"]
    return CaldpoError(
        f"out of memory ({said.rstrip('.')}); {text}",
        remedy="; or ".join(ways)
        or "free memory on the device, or take a larger one: the estimate sees nothing to save",
    )


def by_part(needs: Needs) -> str:
    """The estimate in a sentence, the largest part first."""
    parts = sorted((item for item in needs.parts.items() if item[1]), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {size / GIB:,.3f}" for name, size in parts)
    unknown = f" (activations are not known: {needs.unknown})" if needs.unknown else ""
    return f"by the estimate the run needs about {needs.total / GIB:,.3f} GiB on each device: {listed}{unknown}"


def _there(trainer: Any) -> str:
    """What a device has in all, whoever uses it."""
    if trainer.accelerator == "gpu" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()} has {total / GIB:,.2f} GiB, {free / GIB:,.2f} of them free now"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"this machine has {total / GIB:,.2f} GiB of RAM, less what others use and limits on this process"
