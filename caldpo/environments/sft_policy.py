"""Fit the SFT policy of an environment: a small Llama trained by maximum likelihood on its demonstrations."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from caldpo.environments.text_environment import TextEnvironment
from caldpo.environments.word_tokenizer import word_tokenizer
from caldpo.utils.stream_console import Console

# Raised with any change of this file that changes the weights; part of the cache key (SftRecipe.digest).
_VERSION = 3
_WARMUP_STEPS = 20
_BETAS = (0.9, 0.95)


@dataclass(frozen=True, slots=True)
class SftRecipe:
    """Everything that defines the SFT policy, besides the environment.

    The initial weights are wider than by transformers' 0.02, which suits widths in the thousands: at a width of 64 the
    attention to the prompt forms far later with it.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    initializer_range: float  # standard deviation of the first weights
    steps: int  # of AdamW, with linear decay to 0, each on new samples
    batch_size: int  # demonstrations a step
    lr: float  # the peak
    seed: int  # of weights and samples

    def digest(self, environment: TextEnvironment[Any]) -> str:
        """Return twelve hex digits that change with anything that changes the fitted weights.

        The grammar enters by a sample of its texts. PyTorch's version is part of it, since its kernels are.
        """
        corpus, texts = environment.corpus_facts()
        parts = [_VERSION, asdict(self), corpus, build_tokenizer(environment).get_vocab(), texts, torch.__version__]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def build_tokenizer(environment: TextEnvironment[Any]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word of the environment, which puts BOS in front of a prompt."""
    return word_tokenizer(environment.first_words, environment.later_words, environment.max_length)


def fit_sft(environment: TextEnvironment[Any], recipe: SftRecipe) -> LlamaForCausalLM:
    """Fit the model; return it in evaluation mode. Bit-exact on the same machine; global state is unchanged."""
    tokenizer = build_tokenizer(environment)
    with reproducible(recipe.seed):
        model = LlamaForCausalLM(model_config(environment, recipe, tokenizer))
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=_BETAS, weight_decay=0.0)
        batches = track(
            sft_batches(environment, recipe, tokenizer),
            total=recipe.steps,
            description="Fitting the SFT model (once, then cached)",
            console=Console(stderr=True),
            transient=True,
        )
        for step, (input_ids, attended, response) in enumerate(batches):
            warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
            optimizer.param_groups[0]["lr"] = recipe.lr * warmup * (1 - step / recipe.steps)
            # transformers' own loss: the environment does not change with the log-prob engine
            labels = input_ids.masked_fill(~response, -100)
            nll = model(input_ids, attention_mask=attended.long(), labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            nll.backward()
            optimizer.step()
    return model.eval()


def save_sft(environment: TextEnvironment[Any], recipe: SftRecipe, folder: Path) -> None:
    """Fit the model and write it with its tokenizer as a Hugging Face folder."""
    fit_sft(environment, recipe).save_pretrained(folder)
    build_tokenizer(environment).save_pretrained(folder)


def model_config(
    environment: TextEnvironment[Any], recipe: SftRecipe, tokenizer: PreTrainedTokenizerBase
) -> LlamaConfig:
    """Return the architecture of ``recipe``."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        initializer_range=recipe.initializer_range,
        max_position_embeddings=environment.max_length,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def sft_batches(
    environment: TextEnvironment[Any], recipe: SftRecipe, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield one batch per step: token ids, attention and response mask (EOS included), each ``(rows, length)``."""
    rng = random.Random(recipe.seed)
    prompts = iter(environment.sample_prompts("train", recipe.steps * recipe.batch_size, rng))
    for _ in range(recipe.steps):
        asked = [next(prompts) for _ in range(recipe.batch_size)]
        heads = tokenizer([str(p) for p in asked])["input_ids"]
        responses = [response + tokenizer.eos_token for response in environment.demonstrations(asked, rng)]
        tails = tokenizer(responses, add_special_tokens=False)["input_ids"]
        ends = torch.tensor([len(h) + len(t) for h, t in zip(heads, tails, strict=True)])
        places = torch.arange(int(ends.max()))
        rows = [h + t for h, t in zip(heads, tails, strict=True)]
        input_ids = torch.tensor([r + [tokenizer.pad_token_id] * (len(places) - len(r)) for r in rows])
        attended = places < ends[:, None]
        yield input_ids, attended, attended & (places >= torch.tensor([len(h) for h in heads])[:, None])


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Use one thread and a generator of its own, so that sums are added in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
