"""Clock and memory of a worker process, the same for every variant."""

from __future__ import annotations

import gc
import resource
import sys
import time
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)


class StepClock:
    """Time of the steps after the warm-up; a step ends when its successor's data begins to be fetched.

    Args:
        warmup: steps that are not timed, at least 1.
        steps: steps of the run, warm-up included.
        device: a CUDA device is waited for at the first and the last instant, and not between them.
    """

    def __init__(self, warmup: int, steps: int, device: str) -> None:
        self.warmup, self.steps, self.device = warmup, steps, device
        self.done = 0
        self._started = self._ended = float("nan")

    def step_done(self) -> None:
        """To be called at the end of every optimiser step."""
        self.done += 1
        if self.done == self.warmup:
            self._started = now(self.device)
        if self.done == self.steps:
            self._ended = now(self.device)

    @property
    def seconds(self) -> float:
        """Of all timed steps together; not a number before the last of them."""
        return self._ended - self._started


def now(device: str) -> float:
    """Seconds on a monotonic clock, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class PeakMemory:
    """Peak memory of training, bytes.

    On a CPU, that is the peak of the process's resident set from the first step on, less the resident set after
    the libraries were imported: weights, gradients and optimiser count, Python and its libraries do not. On CUDA,
    it is the peak of PyTorch's allocations.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        gc.collect()
        self.libraries = 0 if device == "cuda" else resident()
        self.before_training = self.training = 0
        self.kind = "peak of CUDA allocations while training"

    def start_training(self) -> None:
        """The model is loaded, the reference precomputed: the first step comes next."""
        self.before_training = peak(self.device)
        was_reset = reset_peak(self.device)
        if self.device != "cuda":
            since = "while training" if was_reset else "of the whole process"
            self.kind = f"peak resident set {since}, less that after imports"

    def end_training(self) -> None:
        """The last step is done."""
        self.training = peak(self.device)

    def as_dict(self) -> dict[str, int | str]:
        """``peak`` is the figure that is compared; the others are what it was made of."""
        return {
            "peak": self.training - self.libraries,
            "peak_of_process": self.training,
            "after_imports": self.libraries,
            "peak_before_training": self.before_training,
            "of": self.kind,
        }


def resident() -> int:
    """Bytes of the process that are in memory now; its peak so far where the system tells no more."""
    return _status("VmRSS") or _highest()


def peak(device: str) -> int:
    """Bytes at the highest since :func:`reset_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM") or _highest()


def reset_peak(device: str) -> bool:
    """Begin a new peak; False where the system cannot, and the peak is that of the whole process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _highest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
