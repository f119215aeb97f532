"""Worker processes, one measurement each, so that none inherits memory or warm caches of another.

``python -m caldpo.bench.worker trl JOB`` and ``... matmul JOB`` are what a process runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import caldpo
from caldpo.bench.benchmark_settings import VARIANTS, CaldpoVariant, TrlVariant
from caldpo.bench.caldpo_runner import train_overrides
from caldpo.bench.measure import matmul_peak
from caldpo.bench.worker_job import JOB, Job
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
        _run(job, ["caldpo.train", *train_overrides(job, variant)])
    else:
        _run(job, ["caldpo.bench.worker", "trl", str(Path(job.output) / JOB)])


def run_matmul(job: Job) -> float:
    """Measure the device's matmul peak in its own process; FLOP/s."""
    _run(job, ["caldpo.bench.worker", "matmul", str(Path(job.output) / JOB)])
    return float(json.loads(job.answer.read_text(encoding="utf-8"))["flops"])


def estimated_bytes(job: Job) -> int | None:
    """Estimate the memory of the job's variant by ``caldpo.estimate`` with the same overrides; bytes.

    None for a variant of TRL, for a model whose activations are unknown, and where the command fails: the measurement
    does not depend on it.
    """
    variant = VARIANTS[job.variant]
    if not isinstance(variant, CaldpoVariant):
        return None
    folder = Path(job.output)
    folder.mkdir(parents=True)
    with (folder / LOG).open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "caldpo.estimate", *train_overrides(job, variant)]
        done = subprocess.run(
            command, cwd=folder, env=environment(job), stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        return None
    estimate = json.loads((folder / ESTIMATE).read_text(encoding="utf-8"))
    return None if estimate["activations_unknown"] else int(estimate["memory_bytes"]["total"])


def _run(job: Job, module: Sequence[str]) -> None:
    folder = Path(job.output)
    folder.mkdir(parents=True)
    job.write(folder / JOB)
    with (folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=folder, env=environment(job), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        finally:
            process.kill()  # on an interrupt; otherwise it has ended
            process.wait()
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    if code == KILLED or (code and ("OutOfMemoryError" in text or "DefaultCPUAllocator: can't allocate" in text)):
        raise OutOfMemoryError
    if code or not job.answer.exists():
        end = "\n    ".join(text.strip().splitlines()[-_LOG_LINES:])
        raise CaldpoError(
            f"ended with exit code {code}\n    {end}",
            key="variants",
            value=job.variant,
            remedy=f"look at {folder / LOG}",
        )


def environment(job: Job) -> dict[str, str]:
    """Environment of a worker: offline, no tracker, no secrets, the configured number of threads."""
    checkout = str(Path(caldpo.__file__).resolve().parents[1])
    threads = str(job.num_threads)
    return environment_without_secrets() | {
        "PYTHONPATH": os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }


def main(kind: str, job_file: str) -> None:
    """Do one measurement in this process.

    Args:
        kind: ``trl`` or ``matmul``.
        job_file: path of the job.
    """
    job = Job.read(Path(job_file))
    if kind == "matmul":
        torch.set_num_threads(job.num_threads)
        write_json(job.answer, {"flops": matmul_peak(job.device, floating_dtype(job.dtype))})
        return
    from caldpo.bench.trl_runner import train_with_trl  # TRL is an extra

    variant = VARIANTS[job.variant]
    assert isinstance(variant, TrlVariant)
    train_with_trl(job, variant).write(job.answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
