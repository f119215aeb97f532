"""Reviews as demonstrations: the first few tokens of each are a prompt, the rest is the response to imitate.

The SFT stage before :mod:`caldpo.data.sources.imdb`, whose prompts are drawn in the same way: so the policy learns to
go on from just such beginnings. Nothing is generated here, and no label is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from caldpo.config.bounds import NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.raw_row import RawRow
from caldpo.data.sources._continuations import beginning, prompt_lengths
from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.errors import CaldpoError
from caldpo.models.hub_model import load_tokenizer


class ReviewTexts:
    """Reads texts and cuts each in two.

    Args:
        path: hub id or folder of the texts, with a column ``text``.
        tokenizer: hub id or folder of the tokenizer that prompts are measured with.
        revision: of the texts: branch, tag or commit.
        min_prompt_tokens, max_prompt_tokens: a prompt's length is drawn evenly between them, in tokens.
        seed: of prompt lengths.
    """

    name = "review texts"

    @validated
    def __init__(
        self,
        path: str,
        tokenizer: str,
        revision: str | None = None,
        min_prompt_tokens: PositiveInt = 2,
        max_prompt_tokens: PositiveInt = 8,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.texts = HubDataset(path, revision=revision)
        self.tokenizer, self.seed = tokenizer, seed
        self.prompt_tokens = prompt_lengths(min_prompt_tokens, max_prompt_tokens)

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yields a prompt and a completion for each text of the split; together they are the text.

        Args:
            split: of the texts (``train``, ``train[:1000]``).

        Raises:
            CaldpoError: texts or tokenizer cannot be loaded, or there is no column ``text``.
        """
        data = self.texts.load(split)
        if "text" not in data.column_names:
            raise CaldpoError(
                f"has no column `text` (but {', '.join(data.column_names)})",
                key="data.source.path",
                value=self.texts.path,
            )
        tokenizer = load_tokenizer(self.tokenizer, key="data.source.tokenizer")
        return (self._row(f"{split}[{i}]", text, i, tokenizer) for i, text in enumerate(data["text"]))

    def _row(self, origin: str, text: str, place: int, tokenizer: PreTrainedTokenizerBase) -> RawRow:
        prompt = beginning(text, place, tokenizer, *self.prompt_tokens, self.seed)
        if not text.startswith(prompt):  # the last token ends inside a character
            return RawRow(origin, None, "its first tokens are no text of their own")
        return RawRow(origin, {"prompt": prompt, "completion": text[len(prompt) :]})
