"""A randomly initialised model of a chosen architecture, for dry runs, tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from caldpo.config.bounds import NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.models.gradient_checkpointing import Checkpointing
from caldpo.models.hub_model import load_tokenizer
from caldpo.models.model_source import ModelSource, floating_dtype, prepare_for_training


@validated
@dataclass
class RandomModel(ModelSource):
    """Weights drawn from ``seed``; the vocabulary is the tokenizer's.

    Args:
        tokenizer: hub id or folder.
        architecture: ``model_type`` of a decoder-only model in transformers.
        hidden_size: width of the residual stream, which ``num_heads`` must divide.
        num_key_value_heads: heads of keys and values; None is ``num_heads``.
        intermediate_size: width inside the feed-forward block; None is 4 x ``hidden_size``.
        max_position_embeddings: longest sequence, tokens.
        tie_word_embeddings: one matrix for the input embedding and the output head.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them; ``auto``: in
            micro-batches above the budget of tokens alone, which are pairs that are longer.
        seed: of the weights; runs with other training seeds start from the same model.
    """

    tokenizer: str
    architecture: Literal[
        "llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "smollm3"
    ] = "llama"
    hidden_size: PositiveInt = 64
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    max_position_embeddings: PositiveInt = 2048
    tie_word_embeddings: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: Checkpointing = "auto"
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        for key, heads, whole in (
            ("num_heads", self.num_heads, "hidden_size"),
            ("num_key_value_heads", self.num_key_value_heads or self.num_heads, "num_heads"),
        ):
            if getattr(self, whole) % heads:
                raise CaldpoError(f"must divide model.{whole}={getattr(self, whole)}", key=f"model.{key}", value=heads)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.tokenizer, key="model.tokenizer")

    def load_policy(self) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.skeleton()  # whose weights are drawn now

    def skeleton(self) -> PreTrainedModel:
        tokenizer = self.load_tokenizer()
        config = AutoConfig.for_model(
            self.architecture,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **self._architecture_sizes(),
        )
        policy = AutoModelForCausalLM.from_config(config, dtype=floating_dtype(self.dtype))
        return prepare_for_training(policy, gradient_checkpointing=self.gradient_checkpointing, dropout=False)

    def identity(self) -> str:
        sizes = ", ".join(f"{name} {value}" for name, value in self._sizes().items())
        return f"random {self.architecture} (seed {self.seed}; {sizes})"

    def _sizes(self) -> dict[str, int]:
        return {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads or self.num_heads,
            "intermediate_size": self.intermediate_size or 4 * self.hidden_size,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
        }

    def _architecture_sizes(self) -> dict[str, int]:
        """Rename the sizes to the keys of the architecture's configuration."""
        renamed = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
        if self.architecture == "gpt2":
            renamed["intermediate_size"] = "n_inner"
        sizes = {renamed.get(name, name): value for name, value in self._sizes().items()}
        if self.architecture == "gpt2":
            del sizes["num_key_value_heads"]
        if self.architecture in ("gemma2", "gemma3_text", "qwen3"):
            sizes["head_dim"] = self.hidden_size // self.num_heads
        return sizes
