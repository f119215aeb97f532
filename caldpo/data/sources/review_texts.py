"""Read reviews as demonstrations: the first few tokens of each are the prompt, the rest is the response to imitate.

The SFT stage before :mod:`caldpo.data.sources.imdb`, whose prompts are drawn in the same way, so that the policy learns
to continue such beginnings. Nothing is generated here, and no label is read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from caldpo.config.bounds import NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.errors import CaldpoError
from caldpo.models.hub_model import load_tokenizer


@validated
@dataclass(eq=False)
class ReviewTexts(PairSource):
    """Reads texts and cuts each in two.

    Args:
        path: hub id or folder of the texts, with a column ``text``.
        tokenizer: hub id or folder of the tokenizer that counts the tokens of prompts.
        revision: of the texts: branch, tag or commit.
        min_prompt_tokens, max_prompt_tokens: of a prompt's length, drawn uniformly, in tokens.
        seed: of prompt lengths.
    """

    name = "review texts"

    path: str
    tokenizer: str
    revision: str | None = None
    min_prompt_tokens: PositiveInt = 2
    max_prompt_tokens: PositiveInt = 8
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        self.prompt_tokens = prompt_lengths(self.min_prompt_tokens, self.max_prompt_tokens)
        self.texts = HubDataset(self.path, revision=self.revision)

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield a prompt and a completion for each text of the split; together they are the text.

        Raises:
            CaldpoError: texts or tokenizer cannot be loaded, or there is no column ``text``.
        """
        texts = self.texts.column(split, "text")
        tokenizer = load_tokenizer(self.tokenizer, key="data.source.tokenizer")
        return (self._row(f"{split}[{i}]", text, i, tokenizer) for i, text in enumerate(texts))

    def _row(self, origin: str, text: str, place: int, tokenizer: PreTrainedTokenizerBase) -> RawRow:
        prompt = beginning(text, place, tokenizer, *self.prompt_tokens, self.seed)
        if not text.startswith(prompt):  # the last token ends inside a character
            return RawRow(origin, None, "its first tokens are not text by themselves")
        return RawRow(origin, {"prompt": prompt, "completion": text[len(prompt) :]})


def prompt_lengths(shortest: int, longest: int) -> tuple[int, int]:
    """Check the bounds of a prompt's length in tokens."""
    if shortest > longest:
        raise CaldpoError(
            f"must not exceed max_prompt_tokens={longest}", key="data.source.min_prompt_tokens", value=shortest
        )
    return shortest, longest


def first_tokens(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, shortest: int, longest: int, seed: int
) -> list[str]:
    """Cut the beginning of each text, see :func:`beginning`; a text without any tokens gives none."""
    prompts = [beginning(text, i, tokenizer, shortest, longest, seed) for i, text in enumerate(texts)]
    return [prompt for prompt in prompts if prompt.strip()]


def beginning(text: str, place: int, tokenizer: PreTrainedTokenizerBase, shortest: int, longest: int, seed: int) -> str:
    """Cut the first tokens of a text: their number is drawn uniformly, a function of the seed and the text's place."""
    length = random.Random(f"prompt {seed} {place}").randint(shortest, longest)
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
    return decode_exactly(tokenizer, ids)


def decode_exactly(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode tokens to the text they stand for, without special tokens or cleaned-up spaces."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
