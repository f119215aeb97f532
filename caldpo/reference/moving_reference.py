"""A reference that follows the policy during training (``modifier=tr_dpo``).

Training pairs are compared with a model that moves; held-out pairs, samples and KL with the reference that the run
started from, so that they mean the same at every step and for every loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.errors import CaldpoError
from caldpo.models.adapters import AdapterSource, NoAdapter
from caldpo.reference.auto_reference import Auto
from caldpo.reference.disabled_adapter import Adapter
from caldpo.reference.frozen_model import Frozen, FrozenReference
from caldpo.reference.precomputed import Precomputed
from caldpo.reference.reference_base import Logps, Reference, ReferenceContext, ReferenceSource
from caldpo.types import PairBatch, ReferenceMove

MOVED_REFERENCE = "moved_reference"  # key of a checkpoint


class MovingReference:
    """Runs a model that is moved towards the policy, beside the reference that the run started from.

    Args:
        start: stays what it is.
        moving: begins as the same model.
        move: when, and how far.
    """

    def __init__(self, start: Reference, moving: FrozenReference, move: ReferenceMove) -> None:
        self.start, self.moving, self.move = start, moving, move
        self.moved_at = 0  # optimiser steps at the last move

    @property
    def cache(self) -> Path | None:
        return self.start.cache

    @property
    def dtype(self) -> torch.dtype:
        return self.start.dtype

    @property
    def rounding(self) -> float:
        return max(self.start.rounding, self.moving.rounding)

    def facts(self) -> Mapping[str, str]:
        return self.start.facts()

    def prepare(self) -> None:
        self.start.prepare()
        self.moving.prepare()

    def logps(self, batch: PairBatch) -> Logps:
        """Compute log-probs of training pairs by the moved model, of all others by the start."""
        return (self.moving if batch.split == "train" else self.start).logps(batch)

    def live(self) -> AbstractContextManager[PreTrainedModel]:
        """Yield the reference that the run started from."""
        return self.start.live()

    @torch.no_grad()
    def follow(self, policy: PreTrainedModel, step: int) -> None:
        """Move, once, where that is due after ``step`` optimiser steps; called before each micro-batch of training."""
        if step == self.moved_at or step % self.move.every:
            return
        self.moved_at = step
        own = dict(self.moving.model.named_parameters())
        for name, value in policy.named_parameters():
            mine = own[name]
            if self.move.share == 1:
                mine.copy_(value)
            else:
                mine.mul_(1 - self.move.share).add_(value.to(mine), alpha=self.move.share)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it: the moved weights, and when they moved last."""
        weights = {name: value.detach() for name, value in self.moving.model.named_parameters()}
        return {"moved_at": self.moved_at, "weights": weights}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.moved_at = int(state["moved_at"])
        own, saved = dict(self.moving.model.named_parameters()), state["weights"]
        if own.keys() != saved.keys():
            raise CaldpoError(
                "the checkpoint's reference is of another model",
                key="resume",
                remedy="resume with the model that the run began with",
            )
        for name, value in own.items():
            saved_value: Tensor = saved[name]
            value.copy_(saved_value)


def build_reference(source: ReferenceSource, context: ReferenceContext, move: ReferenceMove | None) -> Reference:
    """Build the reference that ``source`` describes, moving where the loss moves it."""
    if move is None:
        return source.build(context)
    held_out = replace(context, needed_splits=("test",), streamed=False)
    # by its own build, auto would choose a mode for the training pairs, which are not compared with it
    moving = source if isinstance(source, Frozen) else Frozen(source.path, source.distinct)
    stored = isinstance(source, Auto) and not context.mismatched
    start = Precomputed.build(source, held_out) if stored else moving.build(held_out)  # type: ignore[arg-type]
    return MovingReference(start, moving.build(context), move)


def check_moving(move: ReferenceMove | None, source: ReferenceSource, adapter: AdapterSource, *, shards: bool) -> None:
    """Refuse before weights load a reference that cannot move.

    Args:
        move: of the loss; None: it stays.
        source, adapter: as chosen.
        shards: ranks share one copy of the weights or of the optimiser's state.
    """
    if move is None:
        return
    instead = "choose reference=frozen or reference=auto, or leave tr_dpo out of modifier=[...]"
    if isinstance(source, Precomputed) and not isinstance(source, Auto):
        raise CaldpoError(
            "cannot follow the policy (modifier tr_dpo): its log-probs are computed once, before training",
            key="reference",
            value="precomputed",
            remedy=instead,
        )
    if isinstance(source, Adapter):
        raise CaldpoError(
            "cannot follow the policy (modifier tr_dpo): it is the frozen base of the policy's own adapter",
            key="reference",
            value="adapter",
            remedy=instead,
        )
    if not isinstance(adapter, NoAdapter):
        raise CaldpoError(
            "trains an adapter, and a reference that follows the policy (modifier tr_dpo) is a model without one",
            key="adapter",
            remedy="train all weights (adapter=none), or leave tr_dpo out of modifier=[...]",
        )
    if shards:
        raise CaldpoError(
            "shards weights or optimiser over the ranks, and a reference that follows the policy (modifier tr_dpo)"
            " needs all of them on each",
            key="trainer.strategy",
            remedy="choose trainer=ddp or one device, or leave tr_dpo out of modifier=[...]",
        )
