"""Split pairs by prompt, so that no prompt is in two splits; draw subsets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Literal

from caldpo.data.data_report import Rejection
from caldpo.data.pair import PreferencePair
from caldpo.data.stored_pairs import StoredPairs
from caldpo.errors import CaldpoError
from caldpo.utils.text_format import counted

SHARED = "the test split has the same prompt"  # why a training pair is left out
_SHOWN = 5  # prompts named in a message


def split_by_prompt(
    pairs: Sequence[PreferencePair], test_fraction: float, seed: int
) -> tuple[StoredPairs, StoredPairs]:
    """Send each prompt, with all its pairs in their order, to the training or the test split.

    The side is a function of the prompt and the seed alone: adding, removing or reordering rows moves no
    prompt. So the share of *prompts* in the test split is ``test_fraction`` in expectation.

    Raises:
        CaldpoError: the fraction is not between 0 and 1, both excluded, or one of the splits got no prompt.
    """
    if not 0 < test_fraction < 1:
        raise CaldpoError(
            "must lie between 0 and 1, both excluded, to split a training file",
            key="data.test_fraction",
            value=test_fraction,
            remedy="take 0.05 to 0.2, or give a test split of its own with data.test",
        )
    stored = StoredPairs.of(pairs)
    places: tuple[list[int], list[int]] = ([], [])
    positions: dict[str, float] = {}
    for place, key in enumerate(stored.keys()):
        if key not in positions:
            positions[key] = _position(key, seed)
        places[positions[key] < test_fraction].append(place)
    splits = stored.take(places[0]), stored.take(places[1])
    for name, split, share in zip(("training", "test"), splits, (1 - test_fraction, test_fraction), strict=True):
        if not split:
            expected = share * len(positions)
            raise CaldpoError(
                f"the {name} split got none of the {len(positions):,} distinct prompts ({expected:.2g} expected)",
                key="data.test_fraction",
                value=test_fraction,
                remedy=_remedy(sorted(positions.values()), test_fraction),
            )
    return splits


def _remedy(positions: Sequence[float], test_fraction: float) -> str:
    """Return the remedy where all prompts are on one side: the nearest fraction that parts them, if there is one."""
    other = "give a test split of its own with data.test"
    if len(positions) < 2:
        return other
    low, high = positions[:2] if test_fraction <= positions[0] else positions[-2:]
    middles = (round((low + high) / 2, digits) for digits in range(2, 18))
    fraction = next((middle for middle in middles if low < middle < high), high)
    held_out = sum(position < fraction for position in positions)
    return f"set data.test_fraction={fraction}, which holds out {held_out} of them and trains on the others, or {other}"


def shared_prompts(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> dict[str, tuple[str, str]]:
    """Find prompts that two splits share: by key, the origins of their first pairs in ``train`` and in ``test``."""
    train, test = StoredPairs.of(train), StoredPairs.of(test)
    tested: dict[str, int] = {}  # places of the first pairs of each prompt, in the smaller split as a rule
    for place, key in enumerate(test.keys()):
        tested.setdefault(key, place)
    trained: dict[str, int] = {}
    for place, key in enumerate(train.keys()):
        if key in tested:
            trained.setdefault(key, place)
    return {key: (train.origin(trained[key]), test.origin(place)) for key, place in tested.items() if key in trained}


def _position(key: str, seed: int) -> float:
    """Draw a number in [0, 1), uniform over prompts."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    # 53 bits are what a float holds exactly: more would round up to 1.0.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def settle_shared_prompts(
    train: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    policy: Literal["error", "drop_train", "keep"],
) -> tuple[StoredPairs, list[Rejection]]:
    """Apply a policy to training pairs whose prompt is in the test split; return the others, and rejections of these.

    Raises:
        CaldpoError: under ``error`` if a prompt is shared; under ``drop_train`` if no training pair is left.
    """
    train = StoredPairs.of(train)
    if policy == "keep" or not (shared := shared_prompts(train, test)):
        return train, []
    if policy == "error":
        examples = "".join(f"\n    {a} and {b}" for a, b in list(shared.values())[:_SHOWN])
        raise CaldpoError(
            f"{counted(len(shared), 'prompt')} of the test split also in the training split, so the test would "
            f"reward memorisation; for instance{examples}",
            key="data.on_shared_prompts",
            value=policy,
            remedy="set data.on_shared_prompts=drop_train, or data.test=null to split one file by prompt",
        )
    remaining: list[int] = []
    dropped: list[int] = []
    for place, key in enumerate(train.keys()):
        (dropped if key in shared else remaining).append(place)
    if not remaining:
        raise CaldpoError(
            f"leaves nothing: the test split has the prompts of all {counted(len(train), 'training pair')}",
            key="data.on_shared_prompts",
            value=policy,
            remedy="give data.train and data.test different prompts",
        )
    return train.take(remaining), [Rejection(train.origin(place), "filtered", SHARED) for place in dropped]


def subset(pairs: StoredPairs, at_most: int | None, seed: int) -> StoredPairs:
    """Draw ``at_most`` pairs without replacement, in order; all of them for None.

    The draw is a function of the seed and the number of pairs alone.
    """
    if at_most is None or at_most >= len(pairs):
        return pairs
    return pairs.take(sorted(random.Random(seed).sample(range(len(pairs)), at_most)))
