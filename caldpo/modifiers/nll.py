"""NLL term: ``+ weight (-p_w / n_w)``, the negative log-likelihood of the chosen response, mean per token.

``p_w``: the policy's log-prob of the chosen response, summed, nats; ``n_w``: its tokens. Added last: it is not
multiplied by pair weights. A row without a chosen response has none.

As in Pang et al. 2024, "Iterative Reasoning Preference Optimization", arXiv 2404.19733 (weight 1), and Liu et al.
2024, "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
arXiv 2405.16436 (weight 0.005). A loss that has this term already has a key for its weight.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegative
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.terms import chosen_nll, where_present
from caldpo.modifiers.loss_probes import terms_of
from caldpo.modifiers.modifier_base import AddedTerm
from caldpo.types import PairLogps


class NLL(AddedTerm):
    """Adds the negative log-likelihood of the chosen response."""

    name = "nll"
    takes_unpaired = True

    @validated
    def __init__(self, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def check(self, loss: PreferenceLoss) -> None:
        super().check(loss)
        if self.name in terms_of(loss):
            raise self.refusal(loss, "has this term already", "set the weight by the loss's own key, loss.nll_weight")

    def formula(self, inner: str) -> str:
        return f"{inner} + {self.weight:g} (-p_w/n_w)"

    def term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return self.weight * where_present(logps.chosen_present, chosen_nll(logps))
