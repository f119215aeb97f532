"""How well implicit rewards, beta times the log-ratio, match true rewards.

A reward model is known up to a constant per prompt (the log-partition), so both sides are first centred within
each prompt. What is left can be compared on one scale: a slope of 1 is a calibrated reward.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def reward_agreement(
    implicit: Sequence[float], true: Sequence[float], prompt_ids: Sequence[Hashable]
) -> dict[str, float]:
    """Slope, correlation and error of implicit rewards on true ones, after centring within prompts.

    Args:
        implicit: beta x log-ratio of each response, in units of reward.
        true: its true reward.
        prompt_ids: which prompt it answers. Prompts with one response alone say nothing and count nothing.

    Returns:
        ``slope``: of the least-squares line of implicit on true; 1 is calibrated, below 1 compressed.
        ``pearson``: their correlation. ``error``: mean absolute difference. All are NaN where they are
        undefined: no prompt has two responses, or (slope, pearson) one side does not vary.

    Raises:
        ValueError: the three are not of one length.
    """
    if not len(implicit) == len(true) == len(prompt_ids):
        raise ValueError(f"{len(implicit)} implicit, {len(true)} true rewards, {len(prompt_ids)} prompts")
    number: dict[Hashable, int] = {}
    group = torch.tensor([number.setdefault(p, len(number)) for p in prompt_ids], dtype=torch.long)
    counts = torch.bincount(group, minlength=len(number))
    compared = counts[group] > 1
    x = _centred(torch.tensor(true, dtype=torch.float64), group, counts)[compared]
    y = _centred(torch.tensor(implicit, dtype=torch.float64), group, counts)[compared]
    xx, xy, yy = (x @ x).item(), (x @ y).item(), (y @ y).item()
    return {
        "slope": xy / xx if xx > 0 else float("nan"),
        "pearson": xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else float("nan"),
        "error": (y - x).abs().mean().item(),
    }


def _centred(values: Tensor, group: Tensor, counts: Tensor) -> Tensor:
    sums = torch.zeros(len(counts), dtype=values.dtype).index_add(0, group, values)
    return values - (sums / counts)[group]
