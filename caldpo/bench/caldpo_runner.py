"""This project's side of the benchmark: overrides of its training command, and a callback that times the steps."""

from __future__ import annotations

from pathlib import Path

from caldpo.bench.benchmark_settings import CaldpoVariant
from caldpo.bench.worker_job import BETAS, EPS, JOB, NO_CLIPPING, TEST, TOKENIZER, TRAIN, Job
from caldpo.config.overrides import quoted

TRAINERS = {"cpu": "cpu", "cuda": "gpu"}


def train_overrides(job: Job, variant: CaldpoVariant) -> list[str]:
    """Write the command line after ``python -m caldpo.train``; every other key keeps its default."""
    precision = "bf16-mixed" if job.autocast else {"float32": "32-true", "bfloat16": "bf16-true"}[job.dtype]
    options = ["adapter=lora"] if job.base_bits is None else ["adapter=qlora", f"adapter.bits={job.base_bits}"]
    adapter = [] if job.lora_rank is None else [*options, f"adapter.rank={job.lora_rank}"]
    return [
        "loss=dpo",
        f"loss.beta={job.beta!r}",
        "model=random",
        f"model.tokenizer={quoted(str(job.file(TOKENIZER)))}",
        *(f"model.{key}={_yaml(value)}" for key, value in job.model.items()),
        *adapter,
        "data=local",
        f"data.train={quoted(str(job.file(TRAIN)))}",
        f"data.test={quoted(str(job.file(TEST)))}",
        f"data.max_length={job.max_length}",
        f"data.max_prompt_length={job.max_prompt_length}",
        f"data.micro_batch_size={job.micro_batch_size}",
        "data.on_degenerate=keep",
        "data.on_shared_prompts=keep",
        "data.preview_pairs=0",
        "optim=adamw",
        f"optim.lr={job.lr!r}",
        f"optim.beta1={BETAS[0]!r}",
        f"optim.beta2={BETAS[1]!r}",
        f"optim.eps={EPS!r}",
        "optim.weight_decay=0.0",
        "optim.schedule.decay=constant",
        "optim.schedule.warmup_steps=0",
        f"trainer={TRAINERS[job.device]}",
        f"trainer.precision={precision}",
        f"trainer.max_steps={job.steps}",
        f"trainer.gradient_clip_val={NO_CLIPPING!r}",
        f"trainer.num_threads={job.num_threads}",
        "trainer.val_check_interval=null",
        "trainer.progress_bar=false",
        "callbacks.samples.prompts=0",
        "callbacks.oracle.prompts=0",
        "logger=none",
        "export=false",
        "console=compact",
        f"seed={job.seed}",
        f"hydra.run.dir={quoted(job.output)}",
        "+callbacks.step_timer._target_=caldpo.bench.step_timer.StepTimer",
        f"+callbacks.step_timer.job_file={quoted(str(Path(job.output) / JOB))}",
        *variant_overrides(job, variant),
    ]


def variant_overrides(job: Job, variant: CaldpoVariant) -> list[str]:
    """Fill the job's numbers into the overrides of the variant."""
    return [text.format(max_length=job.max_length) for text in variant.overrides]


def _yaml(value: object) -> str:
    literals = {None: "null", True: "true", False: "false"}
    return literals[value] if value is None or isinstance(value, bool) else str(value)
