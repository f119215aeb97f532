"""What tokenisation did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenCounts:
    """What tokenisation did, counted over all the pairs it was given."""

    prompts_truncated: int = 0
    chosen_truncated: int = 0
    rejected_truncated: int = 0
    identical: int = 0  # pairs whose responses are the same tokens, mostly once truncated
    boundary_merges: int = 0  # responses tokenised by themselves
    eos_stripped: int = 0  # EOS tokens in the responses' own text
    eos_appended: int = 0  # responses that the chat template did not end with EOS
    special_as_text: int = 0  # pairs whose own text spells out special tokens, which stay text
    special_in_prompts: int = 0  # text prompts that spell out special tokens, which are taken for them
    turns_rewritten: int = 0  # earlier turns of the assistant that the chat template wrote otherwise, or not at all
    tokens: int = field(default=0, compare=False)  # of all pairs, also of those that are then dropped
    unknown: int = field(default=0, compare=False)  # of these, tokens that stand for text outside the vocabulary

    @property
    def unknown_share(self) -> float:
        """The share of tokens that stand for text outside the vocabulary."""
        return self.unknown / self.tokens if self.tokens else 0.0
