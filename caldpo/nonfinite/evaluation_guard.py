"""Values of an evaluation or of sampling that are not finite: whose, and of which rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from caldpo.errors import CaldpoError
from caldpo.nonfinite.guard import origin_of
from caldpo.nonfinite.locate import SeenBatch, find, merged, not_finite, some_of
from caldpo.types import PairBatch, PairLogps
from caldpo.utils.collectives import gathered
from caldpo.utils.notes import print_notes

REMEDY = "take an earlier checkpoint; to train again, lower optim.lr, raise loss.beta, or use trainer.precision=32-true"


def not_finite_error(what: str, bad: Sequence[str], count: int, kind: str) -> CaldpoError:
    """The error of rows whose values are not finite.

    Args:
        what: whose values, as ``run at step 4: the policy's log-probs``.
        bad: where each of these rows comes from.
        count: rows that were looked at.
        kind: of rows, plural.
    """
    return CaldpoError(f"{what} are not finite: {len(bad)} of {count} {kind}, {some_of(bad, len(bad))}", remedy=REMEDY)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is remembered of a :class:`PairBatch`: not its tokens."""

    index: Tensor
    weight: Tensor
    split: str

    @property
    def pairs(self) -> int:
        return len(self.weight)


class HeldOutGuard:
    """Remembers what the held-out pairs came to, so that rows can be named where their means are not finite.

    A few numbers per pair, which stay on the device: nothing waits for them as long as all is well.
    """

    def __init__(self) -> None:
        self._seen: list[SeenBatch] = []

    def reset(self) -> None:
        """Forget the evaluation before."""
        self._seen = []

    def keep(self, batch: PairBatch, logps: PairLogps, values: dict[str, Tensor]) -> None:
        """Remember a batch with its loss and terms per pair."""
        rows: Any = _Rows(batch.index, batch.weight, batch.split)
        self._seen.append(SeenBatch(rows, logps, values))

    def judge(self, module: Any, means: Mapping[str, float]) -> CaldpoError | None:
        """Why the run has to stop after this evaluation; None where it need not. All ranks have to ask.

        Where bad steps are skipped, a row with such a value is said and the run goes on, unless weights are not finite
        either: no later step could be any better.

        Args:
            module: the module that trains.
            means: of all held-out pairs, the same on all ranks.
        """
        if all(map(math.isfinite, means.values())):
            return None
        weights = not_finite((name, p.detach()) for name, p in module.policy.named_parameters())
        mine = replace(find(self._seen, None, origin_of(module)), weights=tuple(weights))
        finding = merged(gathered(mine))
        if not finding.bad:
            return None  # a mean over so many pairs overflowed, or has none
        text = f"held-out values are not finite after {module.global_step} optimiser steps: {finding}"
        if module.nonfinite.skips and not finding.weights:
            print_notes([text])
            return None
        return CaldpoError(text, remedy=REMEDY)
