"""How much memory a run may use on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Capacity:
    """Memory for one process of the run.

    Args:
        bytes: how much; None where it cannot be known here.
        what: in words.
        device: ``cpu`` or ``cuda``, where the run would take place.
    """

    bytes: int | None
    what: str
    device: str


def capacity(accelerator: str, devices: int, given_gib: float | None) -> Capacity:
    """What a process of the run has.

    Args:
        accelerator: ``cpu`` or ``gpu``.
        devices: processes on this machine, which share its memory or have a GPU each.
        given_gib: memory to compare with instead, GiB.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = "cuda" if accelerator == "gpu" else "cpu"
    if given_gib is not None:
        return Capacity(int(given_gib * GIB), "given by memory_gib", device)
    if device == "cuda":
        if found < devices:
            return Capacity(None, f"{devices} GPU(s) wanted, {found} on this machine", device)
        free = [torch.cuda.mem_get_info(i)[0] for i in range(devices)]
        return Capacity(min(free), f"free on {torch.cuda.get_device_name(free.index(min(free)))}", device)
    available = available_ram()
    if available is None:
        return Capacity(None, "available memory unknown on this system", device)
    shared = f", shared by {devices} processes" if devices > 1 else ""
    return Capacity(available // devices, f"available RAM{shared}", device)


def available_ram(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be had without swapping, within the limit of a container; None where nothing says."""
    if not meminfo.is_file():
        if "SC_PHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((cgroup / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            # what the container has in its file cache is given back on demand
            cached = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            available = min(available, int(limit) - int(used) + int(cached["inactive_file"]))
    except (OSError, KeyError, ValueError):
        pass  # no container, or an older kind of it
    return max(available, 0)
