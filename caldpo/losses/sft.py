"""SFT (MLE): ``-p_w / n_w``, the negative log-likelihood of the chosen response, mean per token.

``p_w``: policy log-prob of the chosen response, summed, nats; ``n_w``: its tokens. No reference, and the
rejected response is not read. The mean over a step is over pairs: each response counts once, however long.
"""

from __future__ import annotations

from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.terms import chosen_nll
from caldpo.types import LossOutput, PairLogps


class SFT(PreferenceLoss):
    """Maximum likelihood on the chosen responses."""

    needs_reference = False
    needs_rejected = False
    pairwise = False

    @validated
    def __init__(self) -> None:
        super().__init__()

    @property
    def formula(self) -> str:
        return "-p_w/n_w"

    def forward(self, logps: PairLogps) -> LossOutput:
        nll = chosen_nll(logps)
        return LossOutput(nll, {"nll": nll})
