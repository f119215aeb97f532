"""Reward models of responses, differentiable: from a batch of pairs to the rewards of chosen and rejected.

Bradley-Terry: ``P(chosen is better) = sigmoid(r(chosen) - r(rejected))``, so that rewards are in nats of its log-odds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from caldpo.logprobs import LogprobEngine
from caldpo.types import PairBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from caldpo.reference.reference_base import Reference

Rewards = tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]


class LogRatioReward(nn.Module):
    """``r = beta log(pi(y|x) / pi_ref(y|x))``: a policy that DPO trains is a reward model.

    Rafailov et al. 2023, arXiv 2305.18290, Eq. 5 without its ``beta log Z(x)``, which a difference of rewards loses.

    Args:
        policy: trained; starts as the reference.
        reference: of the run.
        beta: reward per nat.
    """

    def __init__(self, policy: PreTrainedModel, reference: Reference, beta: float) -> None:
        super().__init__()
        self.policy, self.beta = policy, beta
        self._reference, self._engine = reference, LogprobEngine(policy)

    def forward(self, batch: PairBatch) -> Rewards:
        chosen, rejected = self._engine(batch)
        reference_chosen, reference_rejected = self._reference.logps(batch)
        return self.beta * (chosen - reference_chosen), self.beta * (rejected - reference_rejected)


class ScalarHeadReward(nn.Module):
    """``r = w h``, ``h`` the last hidden state at the end of the response (its EOS): the usual reward model of RLHF.

    ``w`` starts at 0, so that every reward is 0 before training. Ouyang et al. 2022, arXiv 2203.02155, section 3.5.

    Args:
        policy: whose body is trained; its own output head is not used.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy, self._engine = policy, LogprobEngine(policy)
        head = self._engine.head
        if head is None:
            raise ValueError(f"{type(policy).__name__} has no output head that can be separated")
        self.head = nn.Linear(head.layer.in_features, 1, bias=False, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: PairBatch) -> Rewards:
        hidden = self._engine.hidden_states(batch, last_places(batch))
        rewards = self.head(hidden.to(self.head.weight.dtype))[:, 0]
        return rewards[: batch.pairs], rewards[batch.pairs :]


def last_places(batch: PairBatch) -> Int[Tensor, " responses"]:
    """Find the last token of each response in the flattened tokens: all chosen, then all rejected."""
    device = batch.input_ids.device
    if batch.spans is None:
        ends = batch.attention_mask.long().sum(dim=1) - 1
        return ends + batch.input_ids.shape[1] * torch.arange(len(ends), device=device)
    spans = torch.tensor(batch.spans, device=device)
    ends = spans.sum(dim=1).cumsum(dim=0) - 1  # of the rejected responses, which stand last
    return torch.cat([ends - spans[:, 2], ends])
