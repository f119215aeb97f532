"""Compare the memory that a run needs with a device's, and advise what to change."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from caldpo.components import Components
from caldpo.estimation.memory_breakdown import (
    ACTIVATIONS,
    CASTS,
    EVALUATION,
    GRADIENTS,
    OPTIMIZER,
    PROCESS,
    REFERENCE,
    UPDATE,
    WORKING,
    MemoryBreakdown,
)

GIB = 2**30
TIGHT = 0.9
"""Share of the memory above which a run may still fail: allocators lose some of it to fragmentation."""
MIN_SAVING = 0.03
"""Share of the run's tensors below which a change is not advised."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one process of the run."""

    bytes: int | None  # None where it is unknown on this machine
    source: str  # of the figure
    device: str  # cpu or cuda, which the run would use


def device_memory(accelerator: str, devices: int, memory_gib: float | None) -> DeviceMemory:
    """Look up the memory of a process of the run, ``memory_gib`` or what is free.

    Processes on this machine, one of each of the ``devices``, share its RAM or have a GPU each.
    """
    device = "cuda" if accelerator == "gpu" else "cpu"
    if memory_gib is not None:
        return DeviceMemory(int(memory_gib * GIB), "given by memory_gib", device)
    if device == "cuda":
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if present < devices:
            return DeviceMemory(None, f"{devices} GPU(s) wanted, {present} on this machine", device)
        free = [torch.cuda.mem_get_info(i)[0] for i in range(devices)]
        return DeviceMemory(min(free), f"free on {torch.cuda.get_device_name(free.index(min(free)))}", device)
    available = available_ram()
    if available is None:
        return DeviceMemory(None, "available memory unknown on this system", device)
    shared = f", shared by {devices} processes" if devices > 1 else ""
    return DeviceMemory(available // devices, f"available RAM{shared}", device)


def memory_limit(accelerator: str, devices: int, memory_gib: float | None) -> int | None:
    """Look up the memory that a process of the run can have at most, whatever is free now; None where it is unknown.

    On a CPU: the machine's, the container's or the process's own limit, the lowest, shared by the ``devices``.
    """
    if memory_gib is not None:
        return int(memory_gib * GIB)
    if accelerator == "gpu":
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(min(devices, present))]
        return min(sizes) if len(sizes) == devices else None
    limits = [total_ram(), *(resource.getrlimit(name)[0] for name in (resource.RLIMIT_AS, resource.RLIMIT_DATA))]
    bounded = [limit for limit in limits if limit is not None and limit != resource.RLIM_INFINITY]
    return min(bounded) // devices if bounded else None


def total_ram(cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes of RAM, within the limits of the container or job; None where the system has no figure."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *_cgroup_limits(cgroup, own)])


def _cgroup_limits(cgroup: Path, own: Path) -> Iterator[int]:
    """Yield the memory limits of this process' control groups, and of those around them, of either version."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    groups = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    second = [path for number, _, path in groups if number == "0"] or [""]
    first = [path for _, names, path in groups if "memory" in names.split(",")]
    paths = [(cgroup, "memory.max", path) for path in second]
    paths += [(cgroup / "memory", "memory.limit_in_bytes", path) for path in first]
    for root, name, path in paths:
        inner = root / path.strip("/")
        for folder in (inner, *inner.parents):
            with contextlib.suppress(OSError, ValueError):  # none here, or "max"
                yield int((folder / name).read_text())
            if folder == root:
                break


def available_ram(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes available without swapping, within the limit of a container; None where the system has no figure."""
    if not meminfo.is_file():
        if "SC_PHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((cgroup / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            # the container's file cache is released on demand
            cached = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            available = min(available, int(limit) - int(used) + int(cached["inactive_file"]))
    except (OSError, KeyError, ValueError):
        pass  # no container, or cgroups of version 1
    return max(available, 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run fits, in a sentence, and the changes that save memory."""

    fits: bool | None  # None where it is unknown
    text: str
    advice: tuple[str, ...] = ()


def memory_verdict(memory: MemoryBreakdown, has: DeviceMemory, components: Components) -> Verdict:
    """Compare the memory that a run needs with a device's."""
    total = f"{memory.total / GIB:,.2f} GiB"
    if has.bytes is None:
        bound = "at least" if memory.activations_unknown else "about"
        return Verdict(None, f"needs {bound} {total}; the memory of a device is not known ({has.source})")
    room = f"{has.bytes / GIB:,.2f} GiB ({has.source})"
    changes = tuple(advice(memory, components))
    if memory.total > has.bytes:
        return Verdict(False, f"does not fit: about {total} of {room}", changes)
    if memory.activations_unknown:
        return Verdict(None, f"not known: at least {total} of {room}, without activations")
    if memory.total > TIGHT * has.bytes:
        return Verdict(True, f"tight: about {total} of {room}, and memory may fragment", changes)
    return Verdict(True, f"fits: about {total} of {room}")


def advice(memory: MemoryBreakdown, components: Components) -> list[str]:
    """List the changes that save most memory, the largest saving first."""
    trainer, data, parts = components.trainer, components.data, memory.parts
    savings: dict[str, int] = {}
    per_batch = parts[ACTIVATIONS] + parts[WORKING]
    if memory.peak_pairs > 1 and not memory.recomputes:
        budget = data.max_tokens_per_micro_batch
        if budget == "auto":
            budget = data.cut_by
        if budget is not None:
            smaller = f"data.max_tokens_per_micro_batch={-(-budget // 2)}"
        else:
            smaller = f"data.micro_batch_size={-(-data.micro_batch_size // 2)}"
            smaller += f" trainer.accumulate_grad_batches={trainer.accumulate_grad_batches * 2}"
        savings[f"{smaller}: the same step in smaller micro-batches"] = per_batch
    # the embedded models have no such key
    if getattr(components.model, "gradient_checkpointing", None) in (False, "auto") and not memory.recomputes:
        savings["model.gradient_checkpointing=true: recomputes activations in the backward pass"] = per_batch
    if per_batch > 0:
        savings["data.max_length and data.max_prompt_length lower: fewer tokens of the longest pairs"] = per_batch - 1
    if parts[REFERENCE]:
        savings["reference=precomputed: no second copy of the weights during training"] = parts[REFERENCE]
    if memory.trainable == memory.parameters:
        savings["adapter=lora: gradients and optimiser state of a small share of the weights"] = (
            parts[GRADIENTS] + parts[OPTIMIZER] + parts[CASTS]
        )
    if parts[OPTIMIZER] > parts[GRADIENTS] * 1.5:
        savings["optim=rmsprop: one moment instead of two"] = parts[OPTIMIZER] // 2
    if parts[UPDATE]:
        savings["optim.foreach=false: updates one weight at a time"] = parts[UPDATE]
    if parts[EVALUATION]:
        savings["data.eval_micro_batch_size lower"] = parts[EVALUATION]
    total = memory.total - parts.get(PROCESS, 0)
    savings = {change: saved for change, saved in savings.items() if saved > MIN_SAVING * total}
    return sorted(savings, key=lambda change: -savings[change])
