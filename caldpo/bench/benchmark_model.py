"""The model that is measured: an architecture with its sizes, filled with random weights. No heavy imports here."""

from __future__ import annotations

from typing import Any, Literal

from caldpo.config.bounds import PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

_RANKED = "set benchmark_model.lora_rank, such as 16: adapters are trained beside them"


class Shape:
    """A model's sizes and the lengths it is trained at.

    Args:
        architecture: ``model_type`` of a decoder-only model in transformers.
        hidden_size: width of the residual stream.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide ``hidden_size``.
        num_key_value_heads: heads of keys and values, dividing ``num_heads``; None is ``num_heads``.
        intermediate_size: width inside the feed-forward block.
        vocab_size: tokens; ids of real data above it are folded into it.
        tie_word_embeddings: one matrix for the input embedding and the output head.
        dtype: of weights, gradients, optimiser states and arithmetic.
        lora_rank: train adapters of this rank on all linear layers but the head; None trains all weights.
        base_bits: of the matrices under the adapters; None keeps them in ``dtype``.
        max_length: tokens of a prompt and its longer response together.
        max_prompt_length: tokens left of the prompt of a pair that is too long.
    """

    @validated
    def __init__(
        self,
        architecture: Literal["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2"],
        hidden_size: PositiveInt,
        num_layers: PositiveInt,
        num_heads: PositiveInt,
        num_key_value_heads: PositiveInt | None,
        intermediate_size: PositiveInt,
        vocab_size: PositiveInt,
        tie_word_embeddings: bool,
        dtype: Literal["float32", "bfloat16"],
        lora_rank: PositiveInt | None,
        base_bits: Literal[4, 8] | None,
        max_length: PositiveInt,
        max_prompt_length: PositiveInt,
    ) -> None:
        if hidden_size % num_heads:
            raise CaldpoError(
                f"must divide benchmark_model.hidden_size={hidden_size}", key="num_heads", value=num_heads
            )
        if num_heads % (num_key_value_heads or num_heads):
            raise CaldpoError(
                f"must divide shape.num_heads={num_heads}", key="num_key_value_heads", value=num_key_value_heads
            )
        if base_bits is not None and lora_rank is None:
            raise CaldpoError("weights of few bits take no updates", key="base_bits", value=base_bits, remedy=_RANKED)
        if vocab_size < 8:
            raise CaldpoError("must be at least 8", key="vocab_size", value=vocab_size)
        if max_prompt_length >= max_length:
            raise CaldpoError(
                f"must be below benchmark_model.max_length={max_length}",
                key="max_prompt_length",
                value=max_prompt_length,
            )
        self.architecture, self.vocab_size, self.dtype, self.lora_rank = architecture, vocab_size, dtype, lora_rank
        self.base_bits = base_bits
        self.hidden_size, self.num_layers, self.num_heads = hidden_size, num_layers, num_heads
        self.num_key_value_heads, self.intermediate_size = num_key_value_heads, intermediate_size
        self.tie_word_embeddings = tie_word_embeddings
        self.max_length, self.max_prompt_length = max_length, max_prompt_length

    def model_keys(self, seed: int) -> dict[str, Any]:
        """The keys of ``caldpo.models.random_init.RandomModel``, without the tokenizer."""
        return {
            "architecture": self.architecture,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_length,
            "tie_word_embeddings": self.tie_word_embeddings,
            "dtype": self.dtype,
            "seed": seed,
        }

    def describe(self) -> str:
        """One line for tables."""
        base = "" if self.base_bits is None else f" on a base in {self.base_bits} bits"
        trained = "all weights" if self.lora_rank is None else f"LoRA of rank {self.lora_rank}{base}"
        return (
            f"{self.architecture}, hidden {self.hidden_size}, {self.num_layers} layers, vocabulary"
            f" {self.vocab_size:,}, {self.dtype}, {trained}; limit {self.max_length}/{self.max_prompt_length} tokens"
        )
