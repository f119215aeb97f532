"""Define what an environment of generated texts provides: prompts, two kinds of responses, a true reward, words."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

from caldpo.errors import CaldpoError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

PromptT = TypeVar("PromptT")


class TextEnvironment(ABC, Generic[PromptT]):
    """Prompts (objects whose ``str`` is their text), responses to them, and the true reward of any response.

    Prompts of two splits never meet, whatever the seeds and sizes.
    """

    name: str  # also the value of data.source.environment
    max_length: int  # tokens of the longest prompt with its response, and room for longer samples
    first_words: tuple[str, ...]  # that begin a text
    later_words: tuple[str, ...]

    @abstractmethod
    def prompt_count(self, split: Split, *, shifted: bool = False) -> int:
        """Count the different prompts that :meth:`sample_prompts` can draw at once."""

    @abstractmethod
    def sample_prompts(self, split: Split, count: int, rng: random.Random, *, shifted: bool = False) -> list[PromptT]:
        """Sample ``count`` different prompts of a split, in random order.

        ``shifted`` draws from another distribution over the same split.

        Raises:
            CaldpoError: by :func:`require_prompts`, there are not so many.
        """

    @abstractmethod
    def two_responses(self, prompt: PromptT, rng: random.Random) -> tuple[str, str]:
        """Write two responses with different rewards, as the preference data has them off-policy."""

    @abstractmethod
    def demonstrations(self, prompts: Sequence[PromptT], rng: random.Random) -> list[str]:
        """Write a response to each prompt, as the SFT corpus has them."""

    @abstractmethod
    def reward(self, prompt: str, response: str) -> float:
        """Return the true reward of any two strings."""

    @abstractmethod
    def corpus_facts(self) -> list[Any]:
        """Return JSON values that change with any change of the SFT corpus: settings and a sample of texts."""


def require_prompts(environment: str, split: Split, count: int, available: int) -> None:
    """Refuse more prompts than a split has."""
    if count > available:
        raise CaldpoError(
            f"the {environment} grammar has {available:,} different {split} prompts, fewer than the requested pairs",
            value=count,
            key=f"data.source.{split}_pairs",
            remedy="request fewer pairs: each pair has its own prompt",
        )
