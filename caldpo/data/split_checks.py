"""Checks and choices between loaded pairs and tokens, each a function of its arguments."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from caldpo.data.load import Rejection
from caldpo.data.pair import PreferencePair
from caldpo.data.split import prompt_key, shared_prompts
from caldpo.errors import CaldpoError

_SHOWN = 5  # rows named in a message


def require_scores(pairs: Sequence[PreferencePair], split: str, loss_name: str) -> None:
    """Check that every pair has both ground-truth rewards.

    Raises:
        CaldpoError: naming the loss and how many pairs have none.
    """
    missing = [pair for pair in pairs if not pair.has_scores]
    if missing:
        raise CaldpoError(
            f"loss {loss_name} takes its targets from the data's scores, and {len(missing):,} of "
            f"{len(pairs):,} pairs of {split} have none, first {missing[0].origin}",
            key="loss.targets",
            value="scores",
            remedy="set loss.targets=fixed, or give every row score_chosen and score_rejected",
        )


def settle_shared_prompts(
    train: list[PreferencePair],
    test: list[PreferencePair],
    policy: Literal["error", "drop_train", "keep"],
) -> tuple[list[PreferencePair], list[Rejection]]:
    """Deal with training pairs whose prompt the test split has too.

    Args:
        train, test: pairs of the two splits.
        policy: stop, drop such training pairs, or keep them.

    Returns:
        The training pairs that stay, and the account of the others.

    Raises:
        CaldpoError: under ``error`` if there is such a prompt; under ``drop_train`` if nothing is left.
    """
    if policy == "keep" or not (shared := shared_prompts(train, test)):
        return train, []
    if policy == "error":
        examples = "".join(f"\n    {a} and {b}" for a, b in list(shared.values())[:_SHOWN])
        raise CaldpoError(
            f"{len(shared):,} prompts of the test split are in the training split too, so the test would "
            f"reward memory; for instance{examples}",
            key="data.on_shared_prompts",
            value=policy,
            remedy="set data.on_shared_prompts=drop_train, or data.test=null to split one file by prompt",
        )
    kept, dropped = [], []
    for pair in train:
        if prompt_key(pair.prompt) in shared:
            dropped.append(Rejection(pair.origin, "filtered", "the test split has the same prompt"))
        else:
            kept.append(pair)
    if not kept:
        raise CaldpoError(
            f"leaves nothing: all {len(train):,} training pairs have a prompt of the test split",
            key="data.on_shared_prompts",
            value=policy,
            remedy="give data.train and data.test different prompts",
        )
    return kept, dropped


def subset(pairs: list[PreferencePair], at_most: int | None, seed: int) -> list[PreferencePair]:
    """``at_most`` pairs drawn without replacement, in their order; all of them for None.

    The draw is a function of the seed and the number of pairs alone.
    """
    if at_most is None or at_most >= len(pairs):
        return pairs
    return [pairs[i] for i in sorted(random.Random(seed).sample(range(len(pairs)), at_most))]


def refuse_untokenized(rejections: list[Rejection], kept: int, split: str, on_invalid: str, listed_in: Path) -> None:
    """Stop where tokenisation left out what must not be left out.

    Args:
        rejections: of tokenisation.
        kept: tokenised pairs that are left.
        split: for the message.
        on_invalid: whether a conversation that the template refuses stops the run.
        listed_in: the file that has all rejections already.

    Raises:
        CaldpoError: such a conversation under ``error``; no pair left under either setting.
    """
    refused = [r for r in rejections if r.kind == "row"]
    if not (refused and on_invalid == "error") and kept:
        return
    named = refused or rejections
    listed = "".join(f"\n    {r.origin}: {r.reason}" for r in named[:_SHOWN])
    more = f"\n    ... and {len(named) - _SHOWN:,} more, see {listed_in}" if len(named) > _SHOWN else ""
    what = f"{'' if kept else 'no pair is left: '}{len(named):,} pairs cannot be used"
    raise CaldpoError(
        f"{what} once they are tokenised{listed}{more}",
        key=split,
        remedy="name another template with data.chat_template=FILE, leave out on purpose what it does not write with "
        "data.columns.ignored=[COLUMN], raise data.max_length, or set data.on_invalid=skip to leave out such rows",
    )


def refuse_unknown(share: float, at_most: float, split: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Stop where a vocabulary is not that of the data.

    Args:
        share: of the split's tokens that stand for text outside the vocabulary.
        at_most: what is let pass, and said.
        split: for the message.
        tokenizer: the policy's.

    Raises:
        CaldpoError: there are more.
    """
    if share > at_most:
        raise CaldpoError(
            f"{share:.1%} of the tokens of {split} are {tokenizer.unk_token}: the policy's tokenizer has "
            f"{len(tokenizer):,} tokens and none for that text, so it would be trained on nothing that can be read",
            key="model",
            remedy="take a model whose vocabulary is that of the data, for instance model=hf model.path=ID_OR_FOLDER,"
            f" or set data.max_unknown={min(1.0, share + 0.005):.2f} to train on them",
        )
