"""Margin from scores: the loss sees ``a - scale (score_w - score_l) / beta`` in place of ``a``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats; ``beta``: reward per nat
by the loss's own derivation. Inside DPO this is ``-log sigmoid(beta (a - b) - scale (score_w - score_l))``: the
better the chosen response is scored, the larger the margin of implicit rewards has to be.

The margin of Touvron et al. 2023, "Llama 2", arXiv 2307.09288, Eq. 2, for reward models, and of Amini et al. 2024,
"Direct Preference Optimization with an Offset", arXiv 2402.10571, with the scores' difference itself as the offset
(``loss=odpo`` has its logarithm). It has a place in every loss that reads the log-ratios by their difference alone
and has an implicit reward; a term that reads one of them alone, as the calibration of Cal-DPO does, would be shifted
as well.
"""

from __future__ import annotations

from dataclasses import replace

from caldpo.config.bounds import NonNegative
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.modifiers.loss_probes import reads_only_the_gap
from caldpo.modifiers.modifier_base import Shift
from caldpo.types import PairLogps


class ScoreMargin(Shift):
    """Shifts the chosen log-ratio by the difference of the pair's scores."""

    name = "score_margin"
    needs_reference = True
    needs_scores = True

    @validated
    def __init__(self, scale: NonNegative = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def check(self, loss: PreferenceLoss) -> None:
        super().check(loss)
        if loss.implicit_reward_beta is None:
            raise self.refusal(loss, "has no implicit reward that is a multiple of the log-ratio, to which one adds")
        if not reads_only_the_gap(loss):
            raise self.refusal(loss, "reads a log-ratio by itself, which the margin would shift as well")

    @property
    def note(self) -> str:
        return f"a stands for a - {self.scale:g} (score_w - score_l)/beta"

    def shifted(self, logps: PairLogps, loss: PreferenceLoss) -> PairLogps:
        """Shift by the reference, so that a term that reads the policy's log-probs is not changed."""
        beta = loss.implicit_reward_beta
        if logps.score_chosen is None or logps.score_rejected is None:
            raise CaldpoError(
                "the margin is the difference of a pair's scores, and the data has none",
                key="modifier",
                value=self.name,
                remedy="leave it out, or use data with score_chosen and score_rejected",
            )
        assert beta is not None, "check refuses losses without"
        assert logps.reference_chosen is not None, "check refuses losses without"
        dtype = logps.policy_chosen.dtype
        margin = (logps.score_chosen.to(dtype) - logps.score_rejected.to(dtype)) * (self.scale / beta)
        return replace(logps, reference_chosen=logps.reference_chosen + margin)
