"""Terms that several losses are made of. Pure functions; values per pair, nats."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from caldpo.types import PairLogps


def logistic(logits: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """``-log sigmoid(logits)``: the Bradley-Terry negative log-likelihood of the preference."""
    return -F.logsigmoid(logits)


def chosen_nll(logps: PairLogps) -> Float[Tensor, " pairs"]:
    """``-p_w / n_w``: negative log-likelihood of the chosen response, mean per token."""
    return -logps.policy_chosen / logps.chosen_tokens


def log_ratio_gap(logps: PairLogps, *, per_token: bool) -> Float[Tensor, " pairs"]:
    """``a - b`` of summed log-ratios, or ``a / n_w - b / n_l`` when ``per_token``."""
    if per_token:
        return logps.chosen_log_ratio / logps.chosen_tokens - logps.rejected_log_ratio / logps.rejected_tokens
    return logps.chosen_log_ratio - logps.rejected_log_ratio


def where_present(present: Float[Tensor, " pairs"] | None, term: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """A term of single responses, 0 where the row has no such response; None: every row has it."""
    return term if present is None else torch.where(present > 0, term, 0)


def token_means(logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """``p_w / n_w`` and ``p_l / n_l``: mean log-probs per token of the chosen and rejected responses, no reference."""
    return logps.policy_chosen / logps.chosen_tokens, logps.policy_rejected / logps.rejected_tokens
