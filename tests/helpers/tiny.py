"""Tiny models, tokenizers and batches that tests make for themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from caldpo.data.collate import collate
from caldpo.data.end_tokens import end_tokens
from caldpo.data.pair import TokenizedPair
from caldpo.models import sampling
from caldpo.types import PairBatch

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
VOCABULARY = len(WORDS) + len(SPECIAL)


def tiny_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Words w0..w39, or others; no special tokens are added by itself."""
    core = Tokenizer(WordLevel({w: i for i, w in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Two small layers with random weights large enough that no two tokens are equally likely."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if architecture == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32}
    if architecture in ("gemma2", "gemma3_text", "qwen3"):
        sizes |= {"head_dim": 8}
    if architecture in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"):
        sizes |= {"num_key_value_heads": 2}
    config = AutoConfig.for_model(
        architecture, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def tiny_pairs(count: int, seed: int = 0, longest: int = 9) -> list[TokenizedPair]:
    """Random tokens; responses of 1 to ``longest`` tokens that end with EOS."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> list[int]:
        return [rng.randrange(4, VOCABULARY) for _ in range(rng.randint(low, high))]

    return [
        TokenizedPair(
            words(1, 7),
            [*words(0, longest - 1), 2],
            [*words(0, longest - 1), 2],
            rng.random(),
            -rng.random(),
            i,
            f"t:{i}",
        )
        for i in range(count)
    ]


def tiny_batch(count: int = 5, seed: int = 0) -> PairBatch:
    """A padded batch of random pairs."""
    return batch_of(tiny_pairs(count, seed))


def batch_of(pairs: list[TokenizedPair]) -> PairBatch:
    """These pairs, padded together."""
    return collate(pairs, pad_id=0)


def sample_responses(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> list[list[int]]:
    """Sample until one of the model's own end tokens, unless ``ends`` names others."""
    ends = {"ends": end_tokens(tokenizer, model), **settings}
    return sampling.sample_responses(model, tokenizer, prompts, **ends)
