"""Suggestions for unknown keys and values: other frameworks' names, earlier names, and spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

from omegaconf import DictConfig, OmegaConf

# Names in TRL, transformers, Lightning and PEFT, and the keys here. A key of another section is found in the
# configuration itself by its last part (lr: optim.lr).
KEYS: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("optim.lr",),
    "batch_size": ("data.micro_batch_size", "batch"),
    "bs": ("data.micro_batch_size",),
    "train_batch_size": ("data.micro_batch_size",),
    "per_device_train_batch_size": ("data.micro_batch_size",),
    "eval_batch_size": ("data.eval_micro_batch_size", "batch"),
    "per_device_eval_batch_size": ("data.eval_micro_batch_size",),
    "accumulation": ("trainer.accumulate_grad_batches",),
    "grad_accum": ("trainer.accumulate_grad_batches",),
    "gradient_accumulation_steps": ("trainer.accumulate_grad_batches",),
    "epochs": ("trainer.max_epochs",),
    "n_epochs": ("trainer.max_epochs",),
    "num_epochs": ("trainer.max_epochs",),
    "num_train_epochs": ("trainer.max_epochs",),
    "steps": ("trainer.max_steps",),
    "num_steps": ("trainer.max_steps",),
    "max_grad_norm": ("trainer.gradient_clip_val",),
    "grad_clip": ("trainer.gradient_clip_val",),
    "gradient_clipping": ("trainer.gradient_clip_val",),
    "eval_every": ("trainer.val_check_interval",),
    "eval_steps": ("trainer.val_check_interval",),
    "logging_steps": ("trainer.metrics_sync_every",),
    "save_every": ("callbacks.checkpoint.every",),
    "save_steps": ("callbacks.checkpoint.every",),
    "save_total_limit": ("callbacks.checkpoint.keep",),
    "warmup": ("optim.schedule.warmup_ratio",),
    "lr_scheduler": ("optim.schedule.decay",),
    "lr_scheduler_type": ("optim.schedule.decay",),
    "scheduler": ("optim.schedule.decay",),
    "bf16": ("trainer.precision",),
    "fp16": ("trainer.precision",),
    "fp32": ("trainer.precision",),
    "mixed_precision": ("trainer.precision",),
    "adam_beta1": ("optim.beta1",),
    "adam_beta2": ("optim.beta2",),
    "adam_epsilon": ("optim.eps",),
    "dataloader_num_workers": ("data.num_workers",),
    "torch_dtype": ("model.dtype",),
    "attn_implementation": ("model.attention",),
    "tokenizer_name": ("model.tokenizer",),
    "tokenizer_name_or_path": ("model.tokenizer",),
    "torch_compile": ("trainer.compile",),
    "precompute_ref_log_probs": ("reference",),
    "max_seq_length": ("data.max_length",),
    "max_seq_len": ("data.max_length",),
    "seq_len": ("data.max_length",),
    "model_name": ("model.path",),
    "model_path": ("model.path",),
    "model_id": ("model.path",),
    "model_name_or_path": ("model.path",),
    "pretrained": ("model.path",),
    "ref_model": ("reference.path",),
    "reference_model": ("reference.path",),
    "dataset": ("data",),
    "dataset_name": ("data",),
    "data_path": ("data.train",),
    "train_file": ("data.train",),
    "train_data": ("data.train",),
    "test_file": ("data.test",),
    "eval_file": ("data.test",),
    "loss_type": ("loss",),
    "weight": ("loss.calibration_weight",),
    "lambda": ("loss.calibration_weight",),
    "c": ("loss.calibration_weight",),
    "suite": ("suite", "suites"),
    "optimizer": ("optim",),
    "optimiser": ("optim",),
    "lora": ("adapter",),
    "peft": ("adapter",),
    "use_peft": ("adapter",),
    "load_in_4bit": ("adapter",),
    "fsdp": ("trainer",),
    "deepspeed": ("trainer",),
    "r": ("adapter.rank",),
    "lora_r": ("adapter.rank",),
    "lora_rank": ("adapter.rank",),
    "lora_alpha": ("adapter.alpha",),
    "lora_dropout": ("adapter.dropout",),
    "lora_target_modules": ("adapter.target_modules",),
    "gpus": ("trainer.devices",),
    "num_gpus": ("trainer.devices",),
    "n_gpus": ("trainer.devices",),
    "nodes": ("trainer.num_nodes",),
    "device": ("trainer.accelerator",),
    "out": ("to", "output", "hydra.run.dir"),
    "out_dir": ("to", "output", "hydra.run.dir"),
    "output": ("to", "output", "hydra.run.dir"),
    "output_dir": ("to", "output", "hydra.run.dir"),
    "save_dir": ("to", "output", "hydra.run.dir"),
    "wandb": ("logger",),
    "report_to": ("logger",),
    "wandb_project": ("logger.project",),
    "run_name": ("logger.name",),
    "random_seed": ("seed",),
    "resume_from_checkpoint": ("resume",),
    "checkpoint_path": ("resume", "checkpoint"),
    "base_url": ("judge.base_url",),
    # earlier names of keys
    "fetch_every": ("trainer.metrics_sync_every",),
    "val_every": ("trainer.val_check_interval",),
    "threads": ("trainer.num_threads",),
    "on_bad_numbers": ("trainer.on_nonfinite",),
    "pairs_per_batch": ("data.micro_batch_size",),
    "eval_pairs_per_batch": ("data.eval_micro_batch_size",),
    "tokens_per_batch": ("data.max_tokens_per_micro_batch",),
    "kept_logits_mib": ("logits_cache_mib",),
    "differs": ("reference.distinct",),
    "start": ("adapter.init_from",),
    "start_as": ("adapter.init_mode",),
    "trust_code": ("allow_untrusted_code",),
    "rehearse": ("judge.mock",),
    "objective": ("optimized_metric",),
    "shape": ("benchmark_model",),
    "tuned": ("per_loss",),
    "tags": ("tags",),
    "notes": ("notes",),
}

# Names of values elsewhere, and the values here; of several, the one that the key takes.
VALUES: Mapping[str, tuple[str, ...]] = {
    "bf16": ("bf16-mixed", "bfloat16"),
    "bfloat16": ("bf16-mixed", "bfloat16"),
    "bf16-amp": ("bf16-mixed",),
    "16": ("16-mixed", "float16"),
    "fp16": ("16-mixed", "float16"),
    "half": ("16-mixed", "float16", "fixed"),
    "float16": ("16-mixed", "float16"),
    "32": ("32-true", "float32"),
    "fp32": ("32-true", "float32"),
    "float": ("32-true", "float32"),
    "float32": ("32-true", "float32"),
    "full": ("32-true", "float32"),
    "64": ("64-true", "float64"),
    "fp64": ("64-true", "float64"),
    "double": ("64-true", "float64"),
    "float64": ("64-true", "float64"),
    "cuda": ("gpu", "cuda"),
    "flash": ("flash_attention_2",),
    "flash_attention": ("flash_attention_2",),
    "fa2": ("flash_attention_2",),
    "zero2": ("deepspeed_stage_2", "deepspeed_zero2"),
    "deepspeed": ("deepspeed_zero2",),
    # earlier names of values
    "resident": ("frozen",),
    "cached": ("precomputed",),
    "line": ("compact",),
}


def suggest_known(word: object, choices: Iterable[object]) -> str:
    """Suggest the choice that another framework, or an earlier version, calls ``word``; else one spelled alike."""
    names = list(choices)
    known = KEYS.get(str(word), ()) + VALUES.get(str(word).lower(), ())
    return next((f" (did you mean {last}?)" for name in known if (last := name.rpartition(".")[2]) in names), "") or (
        suggest(word, names)
    )


def suggest(word: object, choices: Iterable[object]) -> str:
    """Suggest the choice spelled most like ``word``, as `` (did you mean X?)``; nothing when none is close."""
    names = [as_yaml(choice) for choice in choices]
    plain = {_plain(name): name for name in names}
    if _plain(str(word)) in plain:
        return f" (did you mean {plain[_plain(str(word))]}?)"
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    near = near or [plain[name] for name in difflib.get_close_matches(_plain(str(word)), plain, n=1, cutoff=0.6)]
    return f" (did you mean {near[0]}?)" if near else ""


def as_yaml(value: object) -> str:
    """Write a value as yaml and the command line do."""
    spelled = {None: "null", True: "true", False: "false"}
    return spelled[value] if value is None or isinstance(value, bool) else str(value)


def _plain(word: str) -> str:
    """Drop what is most often written otherwise: ``CalDPO`` and ``cal-dpo`` are ``cal_dpo``."""
    return word.lower().replace("_", "").replace("-", "")


def meant_keys(key: str, cfg: DictConfig, groups: list[str]) -> list[str]:
    """Find the keys and groups of a configuration that may be meant by an unknown key.

    Args:
        key: as it was written, dotted or not.
        cfg: the composed configuration.
        groups: that options can be chosen from.
    """
    name = key.rpartition(".")[2].replace("-", "_").lower()
    for known in KEYS.get(name, ()):
        if known in groups or _has_key(cfg, known):
            return [known]
    parent = key.rpartition(".")[0]  # a key of a section may stand further down in it
    section = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else cfg
    return list(_leaves(section, name, parent)) if isinstance(section, DictConfig) else []


def _has_key(cfg: DictConfig, key: str) -> bool:
    """Tell whether there is a key, also one whose value is still ``???``."""
    parent, _, name = key.rpartition(".")
    section = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else cfg
    return isinstance(section, DictConfig) and name in list(section)  # "in section" would deny a value of ???


def _leaves(section: DictConfig, name: str, place: str = "") -> Iterator[str]:
    for key in map(str, section):
        if key == "hydra" and not place:
            continue
        below = f"{place}.{key}" if place else key
        if key == name and place:
            yield below
        node = section._get_node(key)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
            yield from _leaves(node, name, below)
