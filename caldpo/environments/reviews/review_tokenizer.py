"""The tokenizer of the reviews environment."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from caldpo.environments.reviews.vocabulary import PROMPT_WORDS, WORDS
from caldpo.environments.word_tokenizer import word_tokenizer

MAX_LENGTH = 64
"""Tokens of the longest prompt with the longest review, and room for a model that rambles."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the vocabulary; BOS is put in front of a prompt."""
    first = PROMPT_WORDS[0]
    return word_tokenizer([first], (word for word in WORDS if word != first), MAX_LENGTH)
