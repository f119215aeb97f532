"""Suggestions for unknown keys and values: other frameworks' names, earlier names, and spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Keys and groups here, and their names in TRL, transformers, Lightning and PEFT. A key of another section is found in
# the configuration itself by its last part (lr: optim.lr).
_KEY_NAMES = {
    "optim.lr": "learning_rate",
    "data.micro_batch_size": "batch_size bs train_batch_size per_device_train_batch_size",
    "data.eval_micro_batch_size": "eval_batch_size per_device_eval_batch_size",
    "batch": "batch_size eval_batch_size",
    "trainer.accumulate_grad_batches": "accumulation grad_accum gradient_accumulation_steps",
    "trainer.max_epochs": "epochs n_epochs num_epochs num_train_epochs",
    "trainer.max_steps": "steps num_steps",
    "trainer.gradient_clip_val": "max_grad_norm grad_clip gradient_clipping",
    "trainer.val_check_interval": "eval_every eval_steps",
    "trainer.metrics_sync_every": "logging_steps",
    "trainer.precision": "bf16 fp16 fp32 mixed_precision",
    "trainer.compile": "torch_compile",
    "trainer.devices": "gpus num_gpus n_gpus",
    "trainer.num_nodes": "nodes",
    "trainer.accelerator": "device",
    "trainer": "fsdp deepspeed",
    "callbacks.checkpoint.every": "save_every save_steps",
    "callbacks.checkpoint.keep": "save_total_limit",
    "optim.schedule.warmup_ratio": "warmup",
    "optim.schedule.min_lr_ratio": "min_lr min_lr_rate lr_floor eta_min lr_end",
    "optim.schedule.decay": "lr_scheduler lr_scheduler_type scheduler",
    "optim.beta1": "adam_beta1",
    "optim.beta2": "adam_beta2",
    "optim.eps": "adam_epsilon",
    "optim": "optimizer optimiser",
    "data.num_workers": "dataloader_num_workers",
    "data.max_length": "max_seq_length max_seq_len seq_len",
    "data": "dataset dataset_name",
    "data.train": "data_path train_file train_data",
    "data.test": "test_file eval_file",
    "model.dtype": "torch_dtype",
    "model.attention": "attn_implementation",
    "model.tokenizer": "tokenizer_name tokenizer_name_or_path",
    "model.path": "model_name model_path model_id model_name_or_path name_or_path pretrained",
    "reference": "precompute_ref_log_probs",
    "reference.path": "ref_model reference_model",
    "loss": "loss_type",
    "loss.calibration_weight": "weight lambda c",
    "suite": "suite",
    "suites": "suite",
    "adapter": "lora peft use_peft load_in_4bit",
    "adapter.rank": "r lora_r lora_rank",
    "adapter.alpha": "lora_alpha",
    "adapter.dropout": "lora_dropout",
    "adapter.target_modules": "lora_target_modules",
    "to": "out out_dir output output_dir save_dir",
    "output": "out out_dir output output_dir save_dir",
    "hydra.run.dir": "out out_dir output output_dir save_dir",
    "logger": "wandb report_to",
    "logger.wandb.project": "wandb_project",
    "logger.wandb.name": "run_name",
    "seed": "random_seed",
    "resume": "resume_from_checkpoint checkpoint_path",
    "checkpoint": "checkpoint_path",
    "judge.base_url": "base_url",
    "tags": "tags",
    "notes": "notes",
}

# Keys here, and their names in earlier versions.
_RENAMED_KEYS = {
    "data.micro_batch_size": "pairs_per_batch",
    "micro_batch_size": "pairs_per_batch",
    "data.eval_micro_batch_size": "eval_pairs_per_batch",
    "data.max_tokens_per_micro_batch": "tokens_per_batch",
    "trainer.metrics_sync_every": "fetch_every",
    "trainer.num_threads": "threads",
    "num_threads": "threads",
    "trainer.on_nonfinite": "on_bad_numbers",
    "trainer.val_check_interval": "val_every",
    "reference.distinct": "differs",
    "adapter.init_from": "start",
    "adapter.init_mode": "start_as",
    "judge.mock": "rehearse",
    "logits_cache_mib": "kept_logits_mib",
    "allow_untrusted_code": "trust_code",
    "optimized_metric": "objective",
    "benchmark_model": "shape",
    "per_loss": "tuned",
    "overwrite": "again",
}

# What the keys of other frameworks that are true or false stand for here.
_OF_FLAGS = {
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "fp32": "32-true",
    "mixed_precision": "bf16-mixed",
    "lora": "lora",
    "peft": "lora",
    "use_peft": "lora",
    "load_in_4bit": "qlora",
    "fsdp": "fsdp",
    "deepspeed": "deepspeed_zero2",
    "wandb": "wandb",
    "precompute_ref_log_probs": "precomputed",
}

# Values here, and their names elsewhere and in earlier versions.
_VALUE_NAMES = {
    "bf16-mixed": "bf16 bfloat16 bf16-amp",
    "bfloat16": "bf16 bfloat16",
    "16-mixed": "16 fp16 half float16",
    "float16": "16 fp16 half float16",
    "fixed": "half",
    "32-true": "32 fp32 float float32 full",
    "float32": "32 fp32 float float32 full",
    "64-true": "64 fp64 double float64",
    "float64": "64 fp64 double float64",
    "gpu": "cuda",
    "cuda": "cuda",
    "flash_attention_2": "flash flash_attention fa2",
    "deepspeed_stage_2": "zero2",
    "deepspeed_zero2": "zero2 deepspeed",
    "frozen": "resident",
    "precomputed": "cached",
    "compact": "line",
    # loss types of TRL's DPO trainer
    "dpo": "sigmoid",
    "dpo_norm": "sigmoid_norm",
    "rso": "hinge",
    "sppo": "sppo_hard",
    "nca": "nca_pair",
    "exo": "exo_pair",
    "bco": "bco_pair",
    "aot": "aot_unpaired",
}


def _by_other_name(names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Map each other name to the names here; where it stands for several, the first that the command has is meant."""
    inverted: dict[str, tuple[str, ...]] = {}
    for here, others in names.items():
        for other in others.split():
            inverted[other] = (*inverted.get(other, ()), here)
    return inverted


_RENAMED, VALUES = _by_other_name(_RENAMED_KEYS), _by_other_name(_VALUE_NAMES)
KEYS = _by_other_name(_KEY_NAMES) | _RENAMED


def suggest_known(word: object, choices: Iterable[object]) -> str:
    """Suggest the choice that another framework, or an earlier version, calls ``word``; else one spelled alike."""
    return as_hint(str(word), known_or_near(word, choices))


def known_or_near(word: object, choices: Iterable[object]) -> str | None:
    """Return the choice that :func:`suggest_known` suggests."""
    names = list(choices)
    known = KEYS.get(str(word), ()) + VALUES.get(str(word).lower(), ())
    return next((last for name in known if (last := name.rpartition(".")[2]) in names), None) or nearest(word, names)


def suggest(word: object, choices: Iterable[object]) -> str:
    """Suggest the choice spelled most like ``word``, as `` (did you mean X?)``; nothing when none is close."""
    near = nearest(word, choices)
    return f" (did you mean {near}?)" if near else ""


def nearest(word: object, choices: Iterable[object]) -> str | None:
    """Return the choice spelled most like ``word``; None when none is close."""
    names = [as_yaml(choice) for choice in choices]
    plain = {_plain(name): name for name in names}
    if _plain(str(word)) in plain:
        return plain[_plain(str(word))]
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    near = near or [plain[name] for name in difflib.get_close_matches(_plain(str(word)), plain, n=1, cutoff=0.6)]
    return near[0] if near else None


def as_hint(key: str, *meant: str | None) -> str:
    """Write which keys an unknown ``key`` means, as `` (renamed to X)`` or `` (did you mean X or Y?)``, if any."""
    names = [name for name in meant if name]
    old = _RENAMED.get(_last_part(key), ())
    if names and any(name == now or now.endswith(f".{name}") for name in names for now in old):
        return f" (renamed to {names[0]})"
    return f" (did you mean {' or '.join(names[:3])}?)" if names else ""


def meant_value(key: str, value: str) -> str:
    """Return the value that the key meant by ``key`` takes for ``value``: for ``bf16=true``, ``bf16-mixed``."""
    if (meant := _OF_FLAGS.get(_last_part(key))) and value.lower() in ("true", "false"):
        return meant if value.lower() == "true" else "..."
    return value


def as_yaml(value: object) -> str:
    """Write a value as yaml and the command line do."""
    spelled = {None: "null", True: "true", False: "false"}
    return spelled[value] if value is None or isinstance(value, bool) else str(value)


def _plain(word: str) -> str:
    """Drop what is most often written otherwise: ``CalDPO`` and ``cal-dpo`` are ``cal_dpo``."""
    return word.lower().replace("_", "").replace("-", "")


def _last_part(key: str) -> str:
    return key.rpartition(".")[2].replace("-", "_").lower()


def meant_keys(key: str, cfg: DictConfig, groups: list[str]) -> list[str]:
    """Find the keys of a configuration, and of its ``groups``, that may be meant by an unknown key, dotted or not."""
    name = _last_part(key)
    for known in KEYS.get(name, ()):
        if known in groups or has_key(cfg, known):
            return [known]
    parent = key.rpartition(".")[0]  # a key of a section may stand further down in it
    section = section_at(cfg, parent)
    return [] if section is None else list(_leaves(section, name, parent))


def other_names(key: str) -> list[str]:
    """List the names, without their sections, of what :func:`meant_keys` takes for meant by ``key``; its own first."""
    name = _last_part(key)
    return [name, *(known.rpartition(".")[2] for known in KEYS.get(name, ()))]


def section_at(cfg: DictConfig, place: str) -> DictConfig | None:
    """Select the section at a dotted place, the configuration itself at ``""``; None where there is none."""
    try:
        section = OmegaConf.select(cfg, place, throw_on_missing=False) if place else cfg
    except OmegaConfBaseException:  # a list or a text is where its parent should be
        return None
    return section if isinstance(section, DictConfig) else None


def has_key(cfg: DictConfig, key: str) -> bool:
    """Tell whether there is a key, also one whose value is still ``???``."""
    parent, _, name = key.rpartition(".")
    return name in list(section_at(cfg, parent) or ())  # "in section" would deny a value of ???


def _leaves(section: DictConfig, name: str, place: str) -> Iterator[str]:
    """Yield the keys called ``name`` in a section and those below it, but at the top level and in Hydra's own."""
    for key in map(str, section):
        if key == "hydra" and not place:
            continue
        below = f"{place}.{key}" if place else key
        if key == name and place:
            yield below
        node = section._get_node(key)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
            yield from _leaves(node, name, below)
