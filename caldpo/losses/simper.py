"""SimPER: ``-exp(m_w) + exp(m_l)``, the inverse perplexities of both responses.

``m_w = p_w / n_w``, ``m_l = p_l / n_l``: policy log-probs of the chosen and rejected response, mean per token, nats;
no reference, and nothing to tune. The loss of one response does not depend on the other.

Xiao et al. 2025, "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters", arXiv 2502.00883;
the authors' trainer (github.com/tengxiao1/SimPER, scripts/simper_trainer.py).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from caldpo.config.signatures import validated
from caldpo.losses.pointwise import PointwiseLoss
from caldpo.losses.terms import token_means
from caldpo.types import PairLogps


class SimPER(PointwiseLoss):
    """Inverse perplexity: raised for chosen, lowered for rejected responses."""

    needs_reference = False
    length_normalised = True

    @validated
    def __init__(self) -> None:
        super().__init__()

    @property
    def formula(self) -> str:
        return "-exp(p_w/n_w) + exp(p_l/n_l)"

    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return -token_means(logps)[0].exp()

    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return token_means(logps)[1].exp()
