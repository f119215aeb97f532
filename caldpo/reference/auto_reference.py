"""Choose the reference mode by what the run needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from caldpo.config.signatures import validated
from caldpo.models.adapted_policy import is_adapted
from caldpo.reference.disabled_adapter import Adapter
from caldpo.reference.frozen_model import Frozen
from caldpo.reference.precomputed import Precomputed
from caldpo.reference.reference_base import Reference, ReferenceContext
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.stream_console import Console

ReferenceMode = Literal["precomputed", "frozen", "adapter"]


@validated
@dataclass
class Auto(Precomputed):
    """``reference=auto``: precomputed where the run sees about all of its pairs, else a model in memory.

    The arguments are :class:`~caldpo.reference.precomputed.Precomputed`'s.
    """

    def build(self, context: ReferenceContext) -> Reference:
        """Choose the mode, print it with the reason, and build the reference."""
        mode, reason = choose_mode(
            trains=context.streamed or context.weighs_tokens or "train" in context.needed_splits,
            pairs=None if context.streamed else len(context.splits["train"]),
            pairs_seen=context.pairs_seen,
            in_policy=self.path is None and is_adapted(context.policy),
            mismatched=context.mismatched,
            weighs_tokens=context.weighs_tokens,
        )
        if is_first_rank():
            Console().print(f"reference=auto: {mode}, {reason}", soft_wrap=True, highlight=False)
        if mode == "precomputed":
            return super().build(context)
        return Adapter().build(context) if mode == "adapter" else Frozen(self.path, self.distinct).build(context)


def choose_mode(
    *,
    trains: bool,
    pairs: int | None,
    pairs_seen: int,
    in_policy: bool,
    mismatched: bool = False,
    weighs_tokens: bool = False,
) -> tuple[ReferenceMode, str]:
    """Choose the reference mode, and give the reason.

    Precomputing costs one pass over each split that is needed. A run that sees fewer training pairs than there are
    would wait for log-probs that it never uses; from nine tenths on, the memory that is saved is worth it.

    Args:
        trains: the training loss reads the reference's log-probs.
        pairs: training pairs that there are; None: they are streamed or sampled, and their log-probs cannot be computed
            first.
        pairs_seen: those that the run will see, repeats counted.
        in_policy: the policy without its adapter is the reference.
        mismatched: the loss reads log-probs of other prompts' responses, which each step draws anew.
        weighs_tokens: the loss weighs the tokens whose log-probs are summed, and stored sums have no weights.
    """
    if mismatched:
        return "adapter" if in_policy else "frozen", "the loss needs log-probs of mismatched responses"
    if not trains:
        return "precomputed", "precomputed for held-out pairs only (the loss is reference-free)"
    if pairs is None or weighs_tokens:
        as_they_come, weighed = (
            "the training pairs are known only as they come",
            "the loss weighs the tokens of each pair",
        )
        return "adapter" if in_policy else "frozen", as_they_come if pairs is None else weighed
    share = f"the run sees {pairs_seen:,} pairs of {pairs:,}"
    if pairs_seen >= 0.9 * pairs:
        return "precomputed", f"{share}, so one pass over them serves this run and all that follow"
    if in_policy:
        return "adapter", f"{share}, and the policy without its adapter is the reference"
    return "frozen", f"{share}, too few to compute log-probs of all first"
