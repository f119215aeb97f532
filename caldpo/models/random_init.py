"""A randomly initialised model of a chosen architecture, for dry runs, tests and benchmarks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from caldpo.config.bounds import NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.models.hub_model import load_tokenizer
from caldpo.models.model_source import NoRepository, floating_dtype, prepare_for_training

# Names of the five sizes in GPT-2's configuration, where they differ from Llama's.
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}


class RandomModel(NoRepository):
    """Weights drawn from ``seed``; the vocabulary is the tokenizer's.

    Args:
        tokenizer: hub id or folder of the tokenizer.
        architecture: ``model_type`` of a decoder-only model in transformers.
        hidden_size: width of the residual stream.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide ``hidden_size``.
        num_key_value_heads: heads of keys and values; None is ``num_heads``.
        intermediate_size: width inside the feed-forward block; None is 4 x ``hidden_size``.
        max_position_embeddings: longest sequence, tokens.
        tie_word_embeddings: one matrix for the input embedding and the output head.
        dtype: of the weights.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        seed: of the weights; runs with other training seeds start from the same model.
    """

    @validated
    def __init__(
        self,
        tokenizer: str,
        architecture: Literal[
            "llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "smollm3"
        ] = "llama",
        hidden_size: PositiveInt = 64,
        num_layers: PositiveInt = 2,
        num_heads: PositiveInt = 4,
        num_key_value_heads: PositiveInt | None = None,
        intermediate_size: PositiveInt | None = None,
        max_position_embeddings: PositiveInt = 2048,
        tie_word_embeddings: bool = False,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        gradient_checkpointing: bool = False,
        seed: NonNegativeInt = 0,
    ) -> None:
        if hidden_size % num_heads:
            raise CaldpoError(f"must divide model.hidden_size={hidden_size}", key="model.num_heads", value=num_heads)
        if num_heads % (num_key_value_heads or num_heads):
            raise CaldpoError(
                f"must divide model.num_heads={num_heads}",
                key="model.num_key_value_heads",
                value=num_key_value_heads,
            )
        self.tokenizer, self.architecture, self.dtype, self.seed = tokenizer, architecture, dtype, seed
        self.gradient_checkpointing = gradient_checkpointing
        self.sizes = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads or num_heads,
            "intermediate_size": intermediate_size or 4 * hidden_size,
            "max_position_embeddings": max_position_embeddings,
            "tie_word_embeddings": tie_word_embeddings,
        }

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
        sizes = ", ".join(f"{k} {v}" for k, v in self.sizes.items())
        return f"random {self.architecture} (seed {self.seed}; {sizes})"

    def _architecture_sizes(self) -> dict[str, Any]:
        """Rename the sizes to the keys of the architecture's configuration."""
        if self.architecture == "gpt2":
            return {_GPT2_NAMES.get(k, k): v for k, v in self.sizes.items() if k != "num_key_value_heads"}
        renamed = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
        sizes = {renamed.get(k, k): v for k, v in self.sizes.items()}
        if self.architecture in ("gemma2", "gemma3_text", "qwen3"):
            sizes["head_dim"] = self.sizes["hidden_size"] // self.sizes["num_heads"]
        return sizes
