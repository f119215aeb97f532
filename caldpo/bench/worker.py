"""``python -m caldpo.bench.worker trl JOB`` or ``... matmul JOB``: one measurement, alone in its process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from caldpo.bench.variants import VARIANTS, Theirs
from caldpo.bench.worker_job import Job
from caldpo.config.run_lifecycle import write_json


def trl(job: Job) -> None:
    """Train as the job's variant says."""
    from caldpo.bench.trl_runner import measure

    variant = VARIANTS[job.variant]
    assert isinstance(variant, Theirs)
    measure(job, variant).write(job.answer)


def matmul(job: Job) -> None:
    """Measure the device."""
    from caldpo.bench.matmul import matmul_peak
    from caldpo.models.model_source import floating_dtype

    torch.set_num_threads(job.num_threads)
    write_json(job.answer, {"flops": matmul_peak(job.device, floating_dtype(job.dtype))})


if __name__ == "__main__":
    {"trl": trl, "matmul": matmul}[sys.argv[1]](Job.read(Path(sys.argv[2])))
