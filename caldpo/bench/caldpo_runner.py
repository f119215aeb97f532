"""This project's side of the benchmark: overrides of its training command, and a callback that times the steps."""

from __future__ import annotations

import json

from caldpo.bench.benchmark_settings import CaldpoVariant
from caldpo.bench.worker_job import BETAS, EPS, NO_CLIPPING, TEST, TOKENIZER, TRAIN, Job
from caldpo.config.overrides import quoted


def train_overrides(job: Job, variant: CaldpoVariant) -> list[str]:
    """Write the command line after ``python -m caldpo.train``; every other key keeps its default."""
    settings, model = job.settings, job.model
    precision = "bf16-mixed" if job.autocast else {"float32": "32-true", "bfloat16": "bf16-true"}[model.dtype]
    options = ["adapter=lora"] if model.base_bits is None else ["adapter=qlora", f"adapter.bits={model.base_bits}"]
    adapter = [] if model.lora_rank is None else [*options, f"adapter.rank={model.lora_rank}"]
    return [
        "loss=dpo",
        f"loss.beta={settings.beta!r}",
        "model=random",
        f"model.tokenizer={quoted(str(job.prepared(TOKENIZER)))}",
        *(f"model.{key}={json.dumps(value)}" for key, value in model.random_model_keys(settings.seed).items()),
        *adapter,
        "data=local",
        f"data.train={quoted(str(job.prepared(TRAIN)))}",
        f"data.test={quoted(str(job.prepared(TEST)))}",
        f"data.max_length={model.max_length}",
        f"data.max_prompt_length={model.max_prompt_length}",
        f"data.micro_batch_size={settings.micro_batch_size}",
        "data.on_degenerate=keep",
        "data.on_shared_prompts=keep",
        "data.preview_pairs=0",
        "optim=adamw",
        f"optim.lr={settings.lr!r}",
        f"optim.beta1={BETAS[0]!r}",
        f"optim.beta2={BETAS[1]!r}",
        f"optim.eps={EPS!r}",
        "optim.weight_decay=0.0",
        "optim.schedule.decay=constant",
        "optim.schedule.warmup_steps=0",
        f"trainer={'gpu' if job.device == 'cuda' else job.device}",
        f"trainer.precision={precision}",
        f"trainer.max_steps={settings.all_steps}",
        f"trainer.gradient_clip_val={NO_CLIPPING!r}",
        f"trainer.num_threads={settings.num_threads}",
        "trainer.val_check_interval=null",
        "trainer.progress_bar=false",
        "callbacks.samples.prompts=0",
        "callbacks.oracle.prompts=0",
        "logger=none",
        "export=false",
        "console=compact",
        f"seed={settings.seed}",
        f"hydra.run.dir={quoted(job.output)}",
        "+callbacks.step_timer._target_=caldpo.bench.step_timer.StepTimer",
        f"+callbacks.step_timer.job_file={quoted(str(job.file))}",
        *variant.filled(model.max_length),
    ]
