"""Tiny models in folders as the hub has them: configuration, weights, generation settings, tokenizer and template."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "qwen3": _SIZES | {"tie_word_embeddings": True},
    "gemma3_text": _SIZES | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "mixtral": _SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2},
    "gpt_oss": _SIZES
    | {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
    },
}
_COLOURS = ("red", "green", "blue", "grey")
_THINGS = ("apple", "river", "stone", "house", "cloud", "lamp")


def write_model(folder: Path, family: str) -> None:
    """A model with random weights under ``folder``, as ``save_pretrained`` and a publisher leave it."""
    tokenizer = chat_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **ids, **FAMILIES[family])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    # what a publisher thinks good for chatting, and nobody asked for here
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_classifier(folder: Path) -> None:
    """A random classifier of two labels that reads the same tokens."""
    tokenizer = chat_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=len(tokenizer), **sizes, max_position_embeddings=258, type_vocab_size=1, pad_token_id=0, num_labels=2
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's template, fitted to the rows."""
    core = ByteLevelBPETokenizer()
    texts = [turn["content"] for row in rows(8, 0) for side in row.values() for turn in side]
    core.train_from_iterator([*texts, "user\nassistant\n"], vocab_size=320, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def rows(count: int, seed: int) -> list[dict[str, list[dict[str, str]]]]:
    """Conversations of which the chosen response names a colour and the rejected one does not."""
    rng = random.Random(seed)

    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    found = []
    for number in range(count):
        thing, colour = rng.choice(_THINGS), rng.choice(_COLOURS)
        found.append(
            {
                "prompt": turn("user", f"What colour is {thing} {seed}{number}?"),
                "chosen": turn("assistant", f"The {thing} is {colour}."),
                "rejected": turn("assistant", f"I know nothing of a {thing}, {rng.choice(_THINGS)}."),
            }
        )
    return found


def write_rows(folder: Path) -> None:
    for name, count, seed in (("train", 24, 1), ("test", 8, 2)):
        lines = (json.dumps(row) + "\n" for row in rows(count, seed))
        (folder / f"{name}.jsonl").write_text("".join(lines))
