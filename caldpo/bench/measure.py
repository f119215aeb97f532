"""Clock and memory of a worker process, the same for every variant, and the device's matmul peak."""

from __future__ import annotations

import gc
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from caldpo.bench.benchmark_settings import BenchmarkSettings

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)
MATMUL_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}
MATMUL_REPEATS = 5


class StepMeter:
    """Time the steps after the warm-up, and measure the peak memory of training, bytes.

    A step ends when the data of the next begins to be fetched; a CUDA device is synchronised at the first and the last
    instant only. Memory of a CPU is the peak of the process's resident set from the first step on, less the resident
    set after imports: weights, gradients and optimiser state count, Python and its libraries do not. On CUDA it is the
    peak of PyTorch's allocations.
    """

    def __init__(self, settings: BenchmarkSettings, device: str) -> None:
        self.settings, self.device, self.steps = settings, device, 0
        self.seconds = self._started = float("nan")  # of all timed steps
        self.memory: dict[str, Any] = {}  # bytes by name, and what they are the peak ``of``
        gc.collect()
        self._libraries = 0 if device == "cuda" else resident_bytes()

    def start_training(self) -> None:
        """Reset the peak, before the first step, with the model loaded and the reference precomputed."""
        before = peak_bytes(self.device)
        since = "while training" if reset_peak(self.device) else "of the whole process"
        of_process = f"peak resident set {since}, less that after imports"
        kind = "peak of CUDA allocations while training" if self.device == "cuda" else of_process
        self.memory = {"after_imports": self._libraries, "peak_before_training": before, "of": kind}

    def step_done(self) -> None:
        """Count an optimiser step; to be called at its end."""
        self.steps += 1
        if self.steps == self.settings.warmup_steps:
            self._started = now(self.device)
        if self.steps == self.settings.all_steps:
            self.seconds = now(self.device) - self._started
            peak = peak_bytes(self.device)
            self.memory |= {"peak": peak - self._libraries, "peak_of_process": peak}


def now(device: str) -> float:
    """Read a monotonic clock in seconds, after the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def resident_bytes() -> int:
    """Resident set of this process; its peak where the system has no current figure."""
    return _status("VmRSS") or _max_rss()


def peak_bytes(device: str) -> int:
    """Peak memory of this process since :func:`reset_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM") or _max_rss()


def reset_peak(device: str) -> bool:
    """Reset the peak; False where the system cannot, so that the peak is that of the whole process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    """Read a line of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _max_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of the fastest of a few large square matrix products."""
    best = 0.0
    for size in MATMUL_SIZES[device]:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = left @ right  # warm-up
        for _ in range(MATMUL_REPEATS):
            started = now(device)
            torch.matmul(left, right, out=out)
            best = max(best, 2 * size**3 / (now(device) - started))
    return best
