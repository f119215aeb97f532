"""Worker processes: one measurement each, alone, so that none inherits memory or warm caches of another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import caldpo
from caldpo.bench.caldpo_runner import train_overrides
from caldpo.bench.variants import VARIANTS, Ours
from caldpo.bench.worker_job import JOB, Job
from caldpo.errors import CaldpoError
from caldpo.security.redacted_streams import environment_without_secrets

LOG = "log.txt"
ESTIMATE = "estimate.json"  # what caldpo.estimate writes into its folder
KILLED = -9  # what the kernel does to a process when memory runs out
_SHOWN = 12  # last lines of a log in an error


class OutOfMemoryError(Exception):
    """A variant does not fit on this device."""


def run_variant(job: Job) -> None:
    """Run the job's variant in a process of its own; its answer is in ``job.answer`` then.

    Raises:
        OutOfMemoryError: it needs more memory than there is.
        CaldpoError: it failed otherwise, with the end of its log.
    """
    variant = VARIANTS[job.variant]
    if isinstance(variant, Ours):
        _run(job, ["caldpo.train", *train_overrides(job, variant)])
    else:
        _run(job, ["caldpo.bench.worker", "trl", str(Path(job.output) / JOB)])


def run_matmul(job: Job) -> None:
    """Measure the device's matmul peak in a process of its own."""
    _run(job, ["caldpo.bench.worker", "matmul", str(Path(job.output) / JOB)])


def estimated_bytes(job: Job) -> int | None:
    """What ``caldpo.estimate`` says of the memory of the job's variant, given the same overrides; bytes.

    None for a variant of TRL, for a model whose activations cannot be followed, and where the command fails: a
    measurement does not hang on it.
    """
    variant = VARIANTS[job.variant]
    if not isinstance(variant, Ours):
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
    told = json.loads((folder / ESTIMATE).read_text(encoding="utf-8"))
    return None if told["activations_unknown"] else int(told["memory_bytes"]["total"])


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
            process.kill()  # when this process is interrupted; else it has ended already
            process.wait()
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    if code == KILLED or (code and ("OutOfMemoryError" in text or "DefaultCPUAllocator: can't allocate" in text)):
        raise OutOfMemoryError
    if code or not job.answer.exists():
        end = "\n    ".join(text.strip().splitlines()[-_SHOWN:])
        raise CaldpoError(
            f"ended with exit code {code}\n    {end}",
            key="variants",
            value=job.variant,
            remedy=f"look at {folder / LOG}",
        )


def environment(job: Job) -> dict[str, str]:
    """Of a worker: nothing online, no tracker, hence no secrets, and as many threads as were asked for."""
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
