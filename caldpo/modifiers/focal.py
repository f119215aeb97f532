"""FocalPO: each pair weighs ``p^gamma``, ``p = sigmoid(r_w - r_l)`` the probability of its preference.

``r_w``, ``r_l``: what the loss's own derivation calls the rewards of chosen and rejected; for DPO ``p`` is the
probability whose negative logarithm it minimises. Pairs that the policy ranks wrong weigh less: the opposite of the
focal loss of vision, ``(1 - p)^gamma``.

The paper's objective is ``-p^gamma log p``, whose gradient runs through the weight as well: for DPO it is the
gradient of DPO times ``p^gamma (1 + gamma log p)``, which changes sign below ``p = exp(-1/gamma)`` (2e-9 at gamma
0.05). With ``detach=true`` the weight has no gradient, and pairs are only weighed.

Liu et al. 2025, "FocalPO: Enhancing Preference Optimizing by Focusing on Correct Preference Rankings",
arXiv 2501.06645.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegative
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.modifiers.loss_probes import has_implicit_rewards
from caldpo.modifiers.modifier_base import PairWeight
from caldpo.types import PairLogps


class Focal(PairWeight):
    """Weighs pairs by the probability that the policy gives to their preference."""

    name = "focal"

    @validated
    def __init__(self, gamma: NonNegative = 0.05, detach: bool = False) -> None:
        super().__init__()
        self.gamma, self.detach = gamma, detach

    def check(self, loss: PreferenceLoss) -> None:
        super().check(loss)
        if not has_implicit_rewards(loss):
            raise self.refusal(loss, "has no implicit reward by its own derivation, from which p would follow")

    def formula(self, inner: str) -> str:
        weight = f"sigmoid(r_w - r_l)^{self.gamma:g}"
        return f"{f'sg[{weight}]' if self.detach else weight} ({inner})"

    def weights(self, logps: PairLogps, loss: PreferenceLoss) -> Float[Tensor, " pairs"]:
        rewards = loss.implicit_rewards(logps)
        assert rewards is not None, "check refuses such losses"
        weight = (self.gamma * F.logsigmoid(rewards[0] - rewards[1])).exp()
        return weight.detach() if self.detach else weight
