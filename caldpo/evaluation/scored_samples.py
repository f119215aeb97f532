"""What the samples of one policy come to, beside the reference's, and the file that lets one read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caldpo.utils.atomic_io import write_text

_MANY = 0.05  # share of cut responses from which on it is told
SAMPLES = "oracle_samples.jsonl"  # beside the results
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What one policy's samples come to, each array ``(prompts x samples,)``, a prompt's samples in a row.

    Args:
        reward: true reward of the policy's samples.
        baseline: of the reference's.
        own: log-ratio policy/reference of the policy's samples, nats.
        theirs: the same of the reference's samples.
        under_reference: log-prob of the policy's samples under the reference, nats.
        prompts: as text.
        texts: the policy's responses.
        other_texts: the reference's.
        tokens: of the policy's responses, end token included.
        ended: whether they reached an end token.
    """

    reward: Values
    baseline: Values
    own: Values
    theirs: Values
    under_reference: Values
    prompts: list[str]
    texts: list[str]
    other_texts: list[str]
    tokens: Values
    ended: NDArray[np.bool_]


def cut_notes(responses: Sequence[Sequence[int]], ends: Sequence[int], longest: int) -> list[str]:
    """A note where many of the policy's responses ran out of length before they ended, which costs them their end.

    Args:
        responses: token ids of each.
        ends: the ids that end one.
        longest: tokens that a response may have.
    """
    cut = sum(len(ids) >= longest and ids[-1] not in ends for ids in responses) / max(1, len(responses))
    return [f"{cut:.0%} of the policy's responses were cut at {longest} tokens"] if cut > _MANY else []


def write_samples(path: Path, outcome: Outcome) -> None:
    """The texts behind the figures, a line a sample, to be read."""
    columns = {
        "prompt": outcome.prompts,
        "policy": outcome.texts,
        "reference": outcome.other_texts,
        "policy_reward": outcome.reward.tolist(),
        "reference_reward": outcome.baseline.tolist(),
        "policy_log_ratio": outcome.own.tolist(),
        "policy_tokens": outcome.tokens.astype(int).tolist(),
        "ended": outcome.ended.tolist(),
    }
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
