"""Prompts from the beginnings of texts, and a language model's continuations of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.data.end_tokens import end_tokens
from caldpo.errors import CaldpoError
from caldpo.models.sampling import sample_responses


def prompt_lengths(shortest: int, longest: int) -> tuple[int, int]:
    """Between which lengths, in tokens, those of prompts are drawn.

    Raises:
        CaldpoError: the shortest is longer than the longest.
    """
    if shortest > longest:
        raise CaldpoError(
            f"must not exceed max_prompt_tokens={longest}", key="data.source.min_prompt_tokens", value=shortest
        )
    return shortest, longest


def first_tokens(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, shortest: int, longest: int, seed: int
) -> list[str]:
    """The first few tokens of each text, as text; a text without any gives none.

    Args:
        shortest, longest: a prompt's length in tokens is drawn evenly between them, a function of the
            seed and the text's position.
    """
    prompts = [beginning(text, i, tokenizer, shortest, longest, seed) for i, text in enumerate(texts)]
    return [prompt for prompt in prompts if prompt.strip()]


def beginning(text: str, place: int, tokenizer: PreTrainedTokenizerBase, shortest: int, longest: int, seed: int) -> str:
    """The first few tokens of the text at ``place``, as text; the others as for :func:`first_tokens`."""
    length = random.Random(f"prompt {seed} {place}").randint(shortest, longest)
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
    return _text(tokenizer, ids)


def sample_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
) -> list[str]:
    """One sampled continuation a prompt, with a progress bar on a terminal.

    ``prompt + continuation`` is the text of the whole sequence, spaces between them included.
    """
    console = Console(stderr=True)
    continuations: list[str] = []
    for start in track(
        range(0, len(prompts), batch_size),
        "Sampling continuations",
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ):
        texts = prompts[start : start + batch_size]
        ids = [_as_prompt(tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
        responses = sample_responses(
            model,
            tokenizer,
            ids,
            ends=end_tokens(tokenizer, model),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=random.Random(f"sample {seed} {start}").getrandbits(31),
            batch_size=batch_size,
        )
        continuations += [_continuation(tokenizer, *parts) for parts in zip(texts, ids, responses, strict=True)]
    return continuations


def _as_prompt(ids: list[int], eos: int) -> list[int]:
    """Without the EOS that some tokenizers append, after which nothing would follow."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int], response: list[int]) -> str:
    # Decoded with the prompt, because many tokenizers drop a space at the beginning of a text.
    whole = _text(tokenizer, ids + response)
    return whole[len(prompt) :] if whole.startswith(prompt) else _text(tokenizer, response)


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
