"""Settings of a benchmark: its top-level keys, the model it measures, the variants. No heavy imports here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.did_you_mean import suggest_known
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError


@dataclass(frozen=True)
class TrlVariant:
    """Options of TRL's ``DPOTrainer``."""

    title: str  # in the table
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of DPOConfig that differ from its defaults
    kernels: bool = False  # use Liger's and FlashAttention's CUDA kernels where they are installed


@dataclass(frozen=True)
class CaldpoVariant:
    """Overrides of ``python -m caldpo.train``, with ``{max_length}`` for the model's limit of tokens."""

    title: str  # in the table
    overrides: tuple[str, ...] = ()

    def filled(self, max_length: int) -> list[str]:
        return [text.format(max_length=max_length) for text in self.overrides]


_NO_CHECKPOINTING = {"gradient_checkpointing": False}
_PRECOMPUTED = {"precompute_ref_log_probs": True}

VARIANTS: dict[str, TrlVariant | CaldpoVariant] = {
    "trl": TrlVariant("TRL default"),
    "trl_no_checkpointing": TrlVariant("TRL, no checkpointing", _NO_CHECKPOINTING),
    "trl_precomputed": TrlVariant("TRL, precomputed reference", _PRECOMPUTED),
    "trl_low_memory": TrlVariant("TRL, one pair at a time", {**_PRECOMPUTED, "per_device_train_batch_size": 1}),
    "trl_single": TrlVariant(
        "TRL, one pair at a time, no checkpointing",
        {**_NO_CHECKPOINTING, **_PRECOMPUTED, "per_device_train_batch_size": 1},
    ),
    "trl_best": TrlVariant("TRL, fastest", {**_NO_CHECKPOINTING, **_PRECOMPUTED}, kernels=True),
    "caldpo": CaldpoVariant("caldpo default"),
    "caldpo_checkpointing": CaldpoVariant("caldpo, checkpointing", ("model.gradient_checkpointing=true",)),
    "caldpo_low_memory": CaldpoVariant(
        "caldpo, least memory",
        ("model.gradient_checkpointing=true", "logits_cache_mib=0", "data.max_tokens_per_micro_batch={max_length}"),
    ),
    "caldpo_by_count": CaldpoVariant("caldpo, whole step at once", ("data.max_tokens_per_micro_batch=null",)),
    "caldpo_frozen": CaldpoVariant("caldpo, frozen reference", ("reference=frozen",)),
    "caldpo_padded": CaldpoVariant("caldpo, padded, frozen reference", ("reference=frozen", "layout=padded")),
    "caldpo_token_budget": CaldpoVariant("caldpo, token budget", ("data.max_tokens_per_micro_batch={max_length}",)),
}


@validated
@dataclass(frozen=True)
class BenchmarkModel:
    """The measured model: an architecture with random weights, and its limits of tokens.

    ``conf/benchmark_model/*.yaml`` explain the keys.
    """

    architecture: Literal["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2"]
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_key_value_heads: PositiveInt | None
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    tie_word_embeddings: bool
    dtype: Literal["float32", "bfloat16"]
    lora_rank: PositiveInt | None
    base_bits: Literal[4, 8] | None
    max_length: PositiveInt
    max_prompt_length: PositiveInt

    def __post_init__(self) -> None:
        heads = self.num_key_value_heads or self.num_heads
        for key, value, multiple, of in (
            ("num_heads", self.num_heads, "hidden_size", self.hidden_size),
            ("num_key_value_heads", heads, "num_heads", self.num_heads),
        ):
            if of % value:
                raise CaldpoError(f"must divide benchmark_model.{multiple}={of}", key=key, value=value)
        if self.base_bits is not None and self.lora_rank is None:
            raise CaldpoError(
                "quantised weights cannot be trained",
                key="base_bits",
                value=self.base_bits,
                remedy="set benchmark_model.lora_rank, such as 16, to train adapters beside them",
            )
        if self.vocab_size < 8:
            raise CaldpoError("must be at least 8", key="vocab_size", value=self.vocab_size)
        if self.max_prompt_length >= self.max_length:
            message = f"must be below benchmark_model.max_length={self.max_length}"
            raise CaldpoError(message, key="max_prompt_length", value=self.max_prompt_length)

    def random_model_keys(self, seed: int) -> dict[str, Any]:
        """Keys of :class:`caldpo.models.random_init.RandomModel`, without the tokenizer."""
        other = ("vocab_size", "lora_rank", "base_bits", "max_length", "max_prompt_length")
        shared = {key: value for key, value in asdict(self).items() if key not in other}
        return shared | {"max_position_embeddings": self.max_length, "seed": seed}

    def describe(self) -> str:
        """Describe the model on one line of a table."""
        base = "" if self.base_bits is None else f" on a base in {self.base_bits} bits"
        trained = "all weights" if self.lora_rank is None else f"LoRA of rank {self.lora_rank}{base}"
        return (
            f"{self.architecture}, hidden {self.hidden_size}, {self.num_layers} layers, vocabulary"
            f" {self.vocab_size:,}, {self.dtype}, {trained}; limit {self.max_length}/{self.max_prompt_length} tokens"
        )


TRL = "trl"  # the baseline that is no folder
RowName = Annotated[str, Field(description="the name of a row, which --help explains")]
RenamedKey = Annotated[
    str, Field(pattern="^[^:]+:[^:]+$", description="a key and the baseline's name for it, such as lr:rate")
]
Override = Annotated[str, Field(description="an override of a training command, such as 'loss=dpo,ipo'")]
VariantName = Annotated[str, Field(description="the name of a variant, which --help explains")]


@validated
@dataclass(frozen=True)
class BenchmarkSettings:
    """Top-level keys of a benchmark, which ``conf/benchmark.yaml`` explains."""

    variants: list[VariantName]
    micro_batch_size: PositiveInt
    steps: PositiveInt
    warmup_steps: PositiveInt
    repeats: PositiveInt
    device: Literal["auto", "cpu", "cuda"]
    num_threads: PositiveInt
    lr: Positive
    beta: Positive
    seed: NonNegativeInt
    data_file: str | None
    tokenizer: str | None
    tolerance: tuple[Positive, Positive] | None
    baseline: str
    rows: list[RowName] | None
    baseline_keys: list[RenamedKey]
    read_pairs: PositiveInt
    compared_runs: PositiveInt
    metrics_rows: PositiveInt
    sweep: list[Override]

    def __post_init__(self) -> None:
        message = None if self.variants else "names nothing to run"
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            near = suggest_known(unknown[0], VARIANTS)
            message = f"there is no variant {unknown[0]}{near}: must be among {', '.join(VARIANTS)}"
        elif len(set(self.variants)) < len(self.variants):
            message = "names a variant twice"
        if message is not None:
            raise CaldpoError(message, key="variants", value=self.variants)

    @property
    def all_steps(self) -> int:
        """Optimiser steps of a run, warm-up included."""
        return self.warmup_steps + self.steps

    @property
    def pairs(self) -> int:
        """Pairs of a run, each seen in one step."""
        return self.all_steps * self.micro_batch_size


def read_settings(cfg: DictConfig) -> tuple[BenchmarkSettings, BenchmarkModel]:
    """Build settings and model of a composed configuration.

    Raises:
        CaldpoError: values contradict each other, through Hydra for those of the model; the data file is missing.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = BenchmarkSettings(**{name: plain[name] for name in BenchmarkSettings.__dataclass_fields__})
    file = None if settings.data_file is None else Path(settings.data_file).expanduser()
    if file is not None and not file.is_file():
        message = "a folder, not a file" if file.is_dir() else "no such file"
        raise CaldpoError(message, key="data_file", value=settings.data_file, remedy="name a file of preference pairs")
    if file is not None and settings.tokenizer is None:
        remedy = "add tokenizer=FOLDER, a hub id or a folder, to the command line"
        raise CaldpoError("is required with data_file", key="tokenizer", remedy=remedy)
    model: BenchmarkModel = instantiate(cfg.benchmark_model)
    return settings, model
