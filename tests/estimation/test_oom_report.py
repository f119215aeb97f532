"""Out of memory: the run ends with where the memory goes and what to change."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.estimate import main as estimate
from caldpo.estimation.memory_verdict import GIB
from caldpo.lightning_module import PreferenceModule
from caldpo.utils.devices import is_out_of_memory
from tests.helpers import forked
from tests.helpers.command import RANDOM_MODEL, train
from tests.helpers.messages import names

SMALL = [
    *RANDOM_MODEL,
    "trainer.progress_bar=false",
    "logger=csv",
    "trainer.max_steps=4",
    "callbacks.samples.prompts=0",
]

# a library's message, verbatim
HOST = (
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    " 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "shortage"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError(HOST), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("expected scalar type Half but result Float"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_what_counts_as_a_shortage(error: Exception, shortage: bool) -> None:
    assert is_out_of_memory(error) == shortage


def failing(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, *overrides: str) -> str:
    """Error of a run whose second training step fails."""
    real = PreferenceModule.training_step

    def step(module: Any, batch: Any, index: int) -> Any:
        if module.global_step == 1:
            raise error
        return real(module, batch, index)

    monkeypatch.setattr(PreferenceModule, "training_step", step)
    train(*SMALL, "hydra.run.dir=run", *overrides, fails=1)
    return json.loads(Path("run/summary.json").read_text())["error"]


def test_the_estimate_by_part_and_what_to_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are those of ``caldpo.estimate``, the largest part first; the cause is chained."""
    message = failing(folder, monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    estimate([*SMALL, "hydra.run.dir=estimate"])
    result = json.loads(Path("estimate/estimate.json").read_text())
    needs = {name: size for name, size in result["memory_bytes"].items() if size}
    names(message, f"{needs.pop('total') / GIB:,.3f} GiB")
    order = sorted(needs, key=lambda name: -needs[name])
    names(message, ", ".join(f"{name} {needs[name] / GIB:,.3f}" for name in order))
    names(message, "out of memory", "CUDA out of memory. Tried to allocate 2.00 GiB")
    names(message, "data.micro_batch_size=3 trainer.accumulate_grad_batches=2", "adapter=lora")
    story = Path("run/error.txt").read_text()
    names(story, "OutOfMemoryError: CUDA out of memory")
    assert "The above exception was the direct cause" in story


def test_other_errors_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(folder, monkeypatch, RuntimeError("expected Half")) == "RuntimeError: expected Half"


def test_a_shortage_before_there_is_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the estimate fails as well, the error still names what ran out."""

    def fails(*args: Any, **keys: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("caldpo.estimation.oom_report.estimate_needs", fails)
    message = failing(folder, monkeypatch, RuntimeError(HOST))
    names(message, "out of memory", "[enforce fail at alloc_cpu.cpp:119]", "MemoryError")
    names(message, "data.micro_batch_size", "trainer.accumulate_grad_batches")


LIMITED = """
import resource, sys
import torch, transformers, pytorch_lightning, pandas
from caldpo.train import main
from caldpo.lightning_module import PreferenceModule
real = PreferenceModule.training_step
def step(module, batch, index):
    if module.global_step == 1:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        torch.empty(2**32)  # 16 GiB, of which no byte is there
    return real(module, batch, index)
PreferenceModule.training_step = step
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_real_allocation_that_fails(folder: Path) -> None:
    Path("limited.py").write_text(LIMITED)
    done = forked.run("limited", *SMALL, "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 1, done.stderr
    names(done.stderr, "out of memory", "alloc_cpu.cpp", "policy: weights", "GiB")
    assert json.loads(Path("run/summary.json").read_text())["status"] == "failed"
