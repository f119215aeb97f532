"""TRL's side of the benchmark: its own ``DPOTrainer``, fed with token ids and measured by a callback.

Its training loop is unchanged. Two methods are overridden: it takes ids instead of tokenising text, so that both sides
train on the same tokens, and its pass over the data for the reference's log-probs is timed.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from caldpo.bench.benchmark_data import training_order
from caldpo.bench.benchmark_settings import TrlVariant
from caldpo.bench.measure import StepMeter
from caldpo.bench.worker_job import ADAPTER, BETAS, EPS, IDS, MODEL, NO_CLIPPING, TOKENIZER, Answer, Ids, Job, digest
from caldpo.models.model_source import floating_dtype


class TokenDPOTrainer(DPOTrainer):
    """``DPOTrainer`` for a data set with the columns ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``."""

    reference_seconds: float | None = None

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # already tokenised

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Dataset:
        started = time.perf_counter()
        dataset = super()._precompute_ref_logps(*args, **kwargs)  # ends with a transfer from the device
        self.reference_seconds = time.perf_counter() - started
        return dataset


class TrlStepTimer(TrainerCallback):
    """Measure the optimiser steps, and collect the logged losses and gradient norms."""

    def __init__(self, meter: StepMeter) -> None:
        self.meter = meter
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.meter.start_training()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.meter.step_done()

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "grad_norm" in logs:  # the summary at the end has none
            self.losses.append(logs["loss"])
            self.grad_norms.append(logs["grad_norm"])


def train_with_trl(job: Job, variant: TrlVariant) -> Answer:
    """Train as ``variant`` says, and return the measurements."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    torch.set_num_threads(job.settings.num_threads)
    options = dpo_options(variant, job)
    timer = TrlStepTimer(StepMeter(job.settings, job.device))
    trainer = TokenDPOTrainer(
        model=_policy(job, attention_implementation(variant, job)),
        args=_config(job, options),
        train_dataset=_dataset(job),
        processing_class=AutoTokenizer.from_pretrained(job.prepared(TOKENIZER), trust_remote_code=False),
        peft_config=_adapter_config(job),
        callbacks=[timer],
    )
    model: Any = trainer.model
    if job.model.lora_rank is not None:
        if job.model.base_bits is not None:  # TRL's adapters on such a base are bfloat16, this project's float32
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        _load_adapter(model, job)
    digests = _digests(trainer, options["gradient_accumulation_steps"])
    trainer.train()
    options["attention"] = model.config._attn_implementation
    return Answer(
        losses=timer.losses,
        grad_norms=timer.grad_norms,
        step_digests=digests,
        seconds=timer.meter.seconds,
        reference_seconds=trainer.reference_seconds,
        memory=timer.meter.memory,
        options=", ".join(f"{name}={value}" for name, value in options.items()),
        versions={name: version(name) for name in ("trl", "transformers", "accelerate", "torch")},
    )


def dpo_options(variant: TrlVariant, job: Job) -> dict[str, Any]:
    """Fields of ``DPOConfig`` of the variant, with its kernels where they are installed and useful."""
    options = dict(variant.options)
    micro_batch = options.setdefault("per_device_train_batch_size", job.settings.micro_batch_size)
    options["gradient_accumulation_steps"] = job.settings.micro_batch_size // micro_batch
    useful = variant.kernels and job.device == "cuda"
    options["use_liger_kernel"] = useful and find_spec("liger_kernel") is not None
    return options


def attention_implementation(variant: TrlVariant, job: Job) -> str | None:
    """Name the attention implementation to request; None leaves it to transformers."""
    useful = variant.kernels and job.device == "cuda" and job.model.dtype == "bfloat16"
    return "flash_attention_2" if useful and find_spec("flash_attn") is not None else None


def _config(job: Job, options: dict[str, Any]) -> DPOConfig:
    return DPOConfig(
        output_dir=job.output,
        max_steps=job.settings.all_steps,
        learning_rate=job.settings.lr,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=0.0,
        max_grad_norm=NO_CLIPPING,
        beta=job.settings.beta,
        max_length=None,  # the pairs are truncated already
        bf16=job.autocast,  # otherwise the weights have the dtype of all arithmetic
        use_cpu=job.device == "cpu",
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=job.settings.seed,
        **options,
    )


def _policy(job: Job, attention: str | None) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        job.prepared(MODEL),
        dtype=floating_dtype(job.model.dtype),
        attn_implementation=attention,
        trust_remote_code=False,
        use_safetensors=True,
    )
    if job.model.base_bits is None:
        return model
    from caldpo.models.qlora import QLora, quantize

    # quantised by the same code on the same device, so that both sides train on the same base
    quantized: PreTrainedModel = torch.nn.Module.to(quantize(model, QLora(bits=job.model.base_bits)), job.device)
    return quantized


def _adapter_config(job: Job) -> Any:
    if job.model.lora_rank is None:
        return None
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(job.prepared(ADAPTER)))
    config.inference_mode = False  # as adapters are saved
    return config


def _load_adapter(model: Any, job: Job) -> None:
    """Load the saved adapter: its first factor is random, and both sides need the same."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(job.prepared(ADAPTER)), device=job.device))


def _dataset(job: Job) -> Dataset:
    """Read the pairs in the order in which this project's sampler visits them."""
    rows = [json.loads(line) for line in job.prepared(IDS).read_text(encoding="utf-8").splitlines()]
    return Dataset.from_list([rows[index] for index in training_order(len(rows), job.settings)])


def _digests(trainer: DPOTrainer, accumulation: int) -> list[str]:
    """Digest the pairs of each step, read back from the batches of the trainer's own loader."""
    batches = [_pairs_of(batch) for batch in trainer.get_train_dataloader()]
    steps = range(0, len(batches), accumulation)
    return [digest(pair for batch in batches[i : i + accumulation] for pair in batch) for i in steps]


def _pairs_of(batch: dict[str, torch.Tensor]) -> list[Ids]:
    """Read prompt, chosen and rejected ids back from a batch of chosen rows, then rejected rows."""
    rows = []
    columns = [batch[name].cpu() for name in ("input_ids", "attention_mask", "completion_mask")]
    for ids, attended, completion in zip(*columns, strict=True):
        is_response = completion.bool()
        rows.append((ids[attended.bool() & ~is_response].tolist(), ids[is_response].tolist()))
    half = len(rows) // 2
    if any(rows[i][0] != rows[half + i][0] for i in range(half)):
        raise RuntimeError("TRL's batch is not chosen rows followed by rejected rows")
    return [(rows[i][0], rows[i][1], rows[half + i][1]) for i in range(half)]
