"""TRL's side of the benchmark: its own ``DPOTrainer``, fed with token ids, watched from callbacks.

Nothing of its training loop is changed. Two things are: it takes the ids as they are instead of tokenising text,
so that both sides train on the same tokens, and its pass over the data for the reference's log-probs is timed.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from caldpo.bench.benchmark_data import read_pairs, training_order
from caldpo.bench.measure import PeakMemory, StepClock
from caldpo.bench.variants import Theirs
from caldpo.bench.worker_job import ADAPTER, BETAS, EPS, HUGE, IDS, MODEL, TOKENIZER, Answer, Ids, Job, digest
from caldpo.models.model_source import floating_dtype


class TokenDPOTrainer(DPOTrainer):
    """``DPOTrainer`` for a data set with the columns ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``."""

    reference_seconds: float | None = None

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # tokenised already

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Dataset:
        started = time.perf_counter()
        dataset = super()._precompute_ref_logps(*args, **kwargs)  # ends by fetching the numbers from the device
        self.reference_seconds = time.perf_counter() - started
        return dataset


class Watch(TrainerCallback):
    """Tells clock and memory of the steps, and keeps what the trainer logs of them."""

    def __init__(self, clock: StepClock, memory: PeakMemory) -> None:
        self.clock, self.memory = clock, memory
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.memory.start_training()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.step_done()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "grad_norm" in logs:  # the summary at the end has none
            self.losses.append(logs["loss"])
            self.grad_norms.append(logs["grad_norm"])

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.memory.end_training()


def measure(job: Job, variant: Theirs) -> Answer:
    """Train as ``variant`` says."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    torch.set_num_threads(job.num_threads)
    options, attention = options_here(variant, job), attention_here(variant, job)
    clock, memory = StepClock(job.warmup_steps, job.steps, job.device), PeakMemory(job.device)
    watch = Watch(clock, memory)
    trainer = TokenDPOTrainer(
        model=_policy(job, attention),
        args=_config(job, options),
        train_dataset=_dataset(job),
        processing_class=AutoTokenizer.from_pretrained(job.file(TOKENIZER), trust_remote_code=False),
        peft_config=_adapter_config(job),
        callbacks=[watch],
    )
    model: Any = trainer.model
    if job.lora_rank is not None:
        if job.base_bits is not None:  # TRL makes adapters on such a base bfloat16; both sides are to train the same
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        _load_adapter(model, job)
    digests = _digests(trainer, options["gradient_accumulation_steps"])
    trainer.train()
    return Answer(
        losses=watch.losses,
        grad_norms=watch.grad_norms,
        step_digests=digests,
        seconds=clock.seconds,
        reference_seconds=trainer.reference_seconds,
        memory=memory.as_dict(),
        options=_words({**options, "attention": model.config._attn_implementation}),
        versions={name: version(name) for name in ("trl", "transformers", "accelerate", "torch")},
    )


def options_here(variant: Theirs, job: Job) -> dict[str, Any]:
    """``DPOConfig``'s fields that make the variant, with its kernels where they are installed and of use here."""
    on_cuda = job.device == "cuda"
    options = dict(variant.options)
    micro_batch = options.setdefault("per_device_train_batch_size", job.micro_batch_size)
    options["gradient_accumulation_steps"] = job.micro_batch_size // micro_batch
    options["use_liger_kernel"] = variant.kernels and on_cuda and find_spec("liger_kernel") is not None
    return options


def attention_here(variant: Theirs, job: Job) -> str | None:
    """The attention implementation to ask for; None leaves it to transformers."""
    of_use = variant.kernels and job.device == "cuda" and job.dtype == "bfloat16"
    return "flash_attention_2" if of_use and find_spec("flash_attn") is not None else None


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _config(job: Job, options: dict[str, Any]) -> DPOConfig:
    return DPOConfig(
        output_dir=job.output,
        max_steps=job.steps,
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=0.0,
        max_grad_norm=HUGE,
        beta=job.beta,
        max_length=None,  # the pairs are cut already
        bf16=job.autocast,  # else the weights have the dtype that everything is to be computed in
        use_cpu=job.device == "cpu",
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=job.seed,
        **options,
    )


def _policy(job: Job, attention: str | None) -> PreTrainedModel:
    dtype = floating_dtype(job.dtype)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        job.file(MODEL),
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=False,
        use_safetensors=True,
    )
    if job.base_bits is None:
        return model
    from caldpo.models.qlora import QLora, quantize

    # rounded by the same code in the same place, so that both sides train on the same base
    rounded: PreTrainedModel = torch.nn.Module.to(quantize(model, QLora(bits=job.base_bits)), job.device)
    return rounded


def _adapter_config(job: Job) -> Any:
    if job.lora_rank is None:
        return None
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(job.file(ADAPTER)))
    config.inference_mode = False  # as adapters are saved
    return config


def _load_adapter(model: Any, job: Job) -> None:
    """Start from the saved adapter: its first factor is random, and both sides need the same."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(job.file(ADAPTER)), device=job.device))


def _dataset(job: Job) -> Dataset:
    """The pairs in the order in which this project's own sampler visits them."""
    pairs = read_pairs(job.file(IDS))
    rows = [pairs[place] for place in training_order(len(pairs), job.micro_batch_size, job.seed)]
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows],
            "chosen_ids": [row.chosen_ids for row in rows],
            "rejected_ids": [row.rejected_ids for row in rows],
        }
    )


def _digests(trainer: DPOTrainer, accumulation: int) -> list[str]:
    """What each step will be given, read back from the batches that the trainer's own loader makes."""
    batches = [_pairs_of(batch) for batch in trainer.get_train_dataloader()]
    steps = range(0, len(batches), accumulation)
    return [digest(pair for batch in batches[i : i + accumulation] for pair in batch) for i in steps]


def _pairs_of(batch: dict[str, torch.Tensor]) -> list[Ids]:
    """Prompt, chosen and rejected ids of a collated batch: chosen rows, then rejected rows."""
    rows = []
    for ids, attended, completion in zip(
        batch["input_ids"].cpu(), batch["attention_mask"].cpu(), batch["completion_mask"].cpu(), strict=True
    ):
        is_response = completion.bool()
        rows.append((ids[attended.bool() & ~is_response].tolist(), ids[is_response].tolist()))
    half = len(rows) // 2
    if any(rows[i][0] != rows[half + i][0] for i in range(half)):
        raise RuntimeError("TRL's batch is not chosen rows followed by rejected rows")
    return [(rows[i][0], rows[i][1], rows[half + i][1]) for i in range(half)]
