"""Worker processes, one measurement each, so that none inherits memory or warm caches of another.

``python -m caldpo.bench.worker trl JOB`` and ``... matmul JOB`` are what a process runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import caldpo
from caldpo.bench.benchmark_settings import VARIANTS, CaldpoVariant, TrlVariant
from caldpo.bench.caldpo_runner import train_overrides
from caldpo.bench.measure import matmul_peak
from caldpo.bench.worker_job import Job, read, write
from caldpo.config.run_lifecycle import write_json
from caldpo.errors import CaldpoError
from caldpo.models.model_source import floating_dtype
from caldpo.security.redacted_streams import environment_without_secrets

LOG = "log.txt"
ESTIMATE = "estimate.json"  # written by caldpo.estimate
KILLED = -9  # exit code of a process that the kernel killed for memory
_LOG_LINES = 12  # last lines of a log in an error


class OutOfMemoryError(Exception):
    """A variant does not fit on this device."""


def run_variant(job: Job) -> None:
    """Run the job's variant in its own process, which writes ``job.answer``.

    Raises:
        OutOfMemoryError: it needs more memory than there is.
        CaldpoError: it failed otherwise, with the end of its log.
    """
    variant = VARIANTS[job.variant]
    if isinstance(variant, CaldpoVariant):
        _run(job, "caldpo.train", *train_overrides(job, variant))
    else:
        _run(job, "caldpo.bench.worker", "trl", str(job.file))


def run_matmul(job: Job) -> float:
    """Measure the device's matmul peak in its own process; FLOP/s."""
    _run(job, "caldpo.bench.worker", "matmul", str(job.file))
    return float(json.loads(job.answer.read_text(encoding="utf-8"))["flops"])


def estimated_bytes(job: Job) -> int | None:
    """Estimate the memory of the job's variant by ``caldpo.estimate`` with the same overrides; bytes.

    None for a variant of TRL, for a model whose activations are unknown, and where the command fails: the measurement
    does not depend on it.
    """
    variant = VARIANTS[job.variant]
    if not isinstance(variant, CaldpoVariant) or _exit_code(job, "caldpo.estimate", *train_overrides(job, variant)):
        return None
    estimate = json.loads((Path(job.output) / ESTIMATE).read_text(encoding="utf-8"))
    return None if estimate["activations_unknown"] else int(estimate["memory_bytes"]["total"])


def _exit_code(job: Job, module: str, *arguments: str) -> int:
    """Run a module in the job's own folder, which has its log."""
    folder = Path(job.output)
    folder.mkdir(parents=True)
    write(job, job.file)
    with (folder / LOG).open("w", encoding="utf-8") as log:
        return subprocess.run(  # kills the process on an interrupt
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=environment(job.settings.num_threads),
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


def _run(job: Job, module: str, *arguments: str) -> None:
    code, log = _exit_code(job, module, *arguments), Path(job.output) / LOG
    text = log.read_text(encoding="utf-8", errors="replace")
    if code == KILLED or (code and ("OutOfMemoryError" in text or "DefaultCPUAllocator: can't allocate" in text)):
        raise OutOfMemoryError
    if code or not job.answer.exists():
        end = "\n    ".join(text.strip().splitlines()[-_LOG_LINES:])
        raise CaldpoError(
            f"ended with exit code {code}\n    {end}",
            key="variants",
            value=job.variant,
            remedy=f"look at {log}",
        )


def environment(num_threads: int) -> dict[str, str]:
    """Environment of a worker: offline, no tracker, no secrets, the configured number of threads."""
    checkout = str(Path(caldpo.__file__).resolve().parents[1])
    return environment_without_secrets() | {
        "PYTHONPATH": os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(num_threads),
        "MKL_NUM_THREADS": str(num_threads),
    }


def main(kind: str, job_file: str) -> None:
    """Do one measurement, ``trl`` or ``matmul``, in this process."""
    job = read(Job, Path(job_file))
    if kind == "matmul":
        torch.set_num_threads(job.settings.num_threads)
        write_json(job.answer, {"flops": matmul_peak(job.device, floating_dtype(job.model.dtype))})
        return
    from caldpo.bench.trl_runner import train_with_trl  # TRL is an extra

    variant = VARIANTS[job.variant]
    assert isinstance(variant, TrlVariant)
    write(train_with_trl(job, variant), job.answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
