"""Fit the SFT policy: a small Llama trained by maximum likelihood on reviews of mostly plain writers."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from caldpo.environments.reviews.review_prompts import sample_prompts
from caldpo.environments.reviews.vocabulary import PROMPT_WORDS, WORDS
from caldpo.environments.reviews.writers import WRITERS, Writer, write
from caldpo.environments.word_tokenizer import word_tokenizer

MAX_LENGTH = 64
"""Tokens of the longest prompt with the longest review, and room for longer samples."""

CORPUS: dict[str, float] = {"weak": 0.1, "plain": 0.7, "good": 0.2}
"""Shares of the writers in the SFT corpus; the preference data draws on all writers equally, experts included."""

# Raised with any change of this file that changes the weights; part of the cache key (SftRecipe.digest).
_VERSION = 3
_WARMUP_STEPS = 20
_BETAS = (0.9, 0.95)


@dataclass(frozen=True, slots=True)
class SftRecipe:
    """Everything that defines the SFT policy, besides the grammar.

    The initial weights are wider than by transformers' 0.02, which suits widths in the thousands: at a width of 64 the
    attention to the prompt forms far later with it.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    initializer_range: float  # standard deviation of the first weights
    steps: int  # of AdamW, with linear decay to 0, each on new samples
    batch_size: int  # reviews a step
    lr: float  # the peak
    seed: int  # of weights and samples

    def digest(self) -> str:
        """Return twelve hex digits that change with anything that changes the fitted weights.

        Grammar and writers enter by a sample of their text. PyTorch's version is part of it, since its
        kernels are.
        """
        texts = _text_sample(tuple(WRITERS.values()))
        parts = [_VERSION, asdict(self), CORPUS, build_tokenizer().get_vocab(), texts, torch.__version__]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=1)
def _text_sample(writers: tuple[Writer, ...]) -> list[tuple[str, ...]]:
    """Sample prompts, and each writer's review of them."""
    rng = random.Random(0)
    return [(str(p), *(write(p, w, rng) for w in writers)) for p in sample_prompts("train", 200, rng)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word of the vocabulary, which puts BOS in front of a prompt."""
    first = PROMPT_WORDS[0]
    return word_tokenizer([first], (word for word in WORDS if word != first), MAX_LENGTH)


def fit_sft(recipe: SftRecipe) -> LlamaForCausalLM:
    """Fit the model; return it in evaluation mode. Bit-exact on the same machine; global state is unchanged."""
    tokenizer = build_tokenizer()
    with _reproducible(recipe.seed):
        model = LlamaForCausalLM(model_config(recipe, tokenizer))
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=_BETAS, weight_decay=0.0)
        batches = track(
            sft_batches(recipe, tokenizer),
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


def save_sft(recipe: SftRecipe, folder: Path) -> None:
    """Fit the model and write it with its tokenizer as a Hugging Face folder."""
    fit_sft(recipe).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def model_config(recipe: SftRecipe, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Return the architecture of ``recipe``."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        initializer_range=recipe.initializer_range,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def sft_batches(
    recipe: SftRecipe, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield one batch per step: token ids, attention and response mask (EOS included), each ``(reviews, length)``."""
    rng = random.Random(recipe.seed)
    prompts = iter(sample_prompts("train", recipe.steps * recipe.batch_size, rng))
    for _ in range(recipe.steps):
        asked = [next(prompts) for _ in range(recipe.batch_size)]
        writers = rng.choices([WRITERS[name] for name in CORPUS], list(CORPUS.values()), k=recipe.batch_size)
        heads = tokenizer([str(p) for p in asked])["input_ids"]
        reviews = [write(p, w, rng) + tokenizer.eos_token for p, w in zip(asked, writers, strict=True)]
        tails = tokenizer(reviews, add_special_tokens=False)["input_ids"]
        ends = torch.tensor([len(h) + len(t) for h, t in zip(heads, tails, strict=True)])
        places = torch.arange(int(ends.max()))
        rows = [h + t for h, t in zip(heads, tails, strict=True)]
        input_ids = torch.tensor([r + [tokenizer.pad_token_id] * (len(places) - len(r)) for r in rows])
        attended = places < ends[:, None]
        yield input_ids, attended, attended & (places >= torch.tensor([len(h) for h in heads])[:, None])


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Use one thread and a generator of its own, so that sums are added in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
