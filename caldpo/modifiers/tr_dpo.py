"""TR-DPO: every so many optimiser steps the reference moves towards the policy.

With ``mode=mix`` the reference's weights become ``share`` times the policy's plus ``1 - share`` times their own; with
``mode=replace`` they become the policy's. Held-out log-ratios, samples and KL stay relative to the reference that the
run started from, for the curves of all losses to compare.

Gorbatovski et al. 2024, "Learn Your Reference Model for Real Good Alignment", arXiv 2404.09656, soft and hard update;
share 0.6 and 512 steps are TRL's defaults after that paper (TRL 1.16, ``ref_model_mixup_alpha``,
``ref_model_sync_steps``).
"""

from __future__ import annotations

from typing import Literal

from caldpo.config.bounds import Fraction, PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.modifiers.modifier_base import ReferenceUpdate
from caldpo.types import ReferenceMove

MIX_SHARE = 0.6


class TRDPO(ReferenceUpdate):
    """Moves the reference towards the policy."""

    name = "tr_dpo"
    takes_unpaired = True

    @validated
    def __init__(
        self, mode: Literal["mix", "replace"] = "mix", share: Fraction | None = None, every: PositiveInt = 512
    ) -> None:
        super().__init__()
        if mode == "replace" and share is not None:
            raise CaldpoError(
                "is read only with mode=mix",
                key="modifier.tr_dpo.share",
                value=share,
                remedy="leave it out, or set modifier.tr_dpo.mode=mix",
            )
        self.move = ReferenceMove(every, 1.0 if mode == "replace" else MIX_SHARE if share is None else share)

    @property
    def note(self) -> str:
        share = self.move.share
        return f"every {self.move.every:,} steps reference = {share:g} policy + {1 - share:g} reference"
