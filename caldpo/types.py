"""The typed values that travel between data, engine, losses and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class PairBatch:
    """Tokenised pairs: row ``i`` is the chosen, row ``pairs + i`` the rejected response of pair ``i``.

    Right padding. Masks are carried, never inferred from a pad id (which may equal EOS). Not a dataclass:
    Lightning takes dataclasses apart and would round weights and scores to the precision of the model.

    Args:
        input_ids: tokens.
        attention_mask: True on tokens, False on padding.
        response_mask: True on the response tokens, EOS included.
        weight: 1 for a real pair, 0 for filler that evens out ranks.
        index: row of the pair in its split, so that errors can name it.
        score_chosen: ground-truth rewards, None when the data has none.
        score_rejected: likewise.
        step_pairs: real pairs in the whole optimiser step, over ranks and accumulation.
    """

    def __init__(
        self,
        *,
        input_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"],
        response_mask: Bool[Tensor, "rows length"],
        weight: Float[Tensor, " pairs"],
        index: Int[Tensor, " pairs"],
        score_chosen: Float[Tensor, " pairs"] | None,
        score_rejected: Float[Tensor, " pairs"] | None,
        step_pairs: int,
    ) -> None:
        self.input_ids, self.attention_mask, self.response_mask = input_ids, attention_mask, response_mask
        self.weight, self.index = weight, index
        self.score_chosen, self.score_rejected = score_chosen, score_rejected
        self.step_pairs = step_pairs

    @property
    def pairs(self) -> int:
        """Number of pairs, filler included."""
        return len(self.weight)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PairBatch:
        """The same batch in page-locked memory (called by the data loader)."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> PairBatch:
        moved: dict[str, Any] = {n: move(v) if isinstance(v, Tensor) else v for n, v in vars(self).items()}
        return PairBatch(**moved)


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed response log-probs in nats, one value per pair, and response lengths in tokens.

    The reference's are None only where nobody asked for them (training a reference-free loss).
    """

    policy_chosen: Float[Tensor, " pairs"]
    policy_rejected: Float[Tensor, " pairs"]
    reference_chosen: Float[Tensor, " pairs"] | None
    reference_rejected: Float[Tensor, " pairs"] | None
    chosen_tokens: Float[Tensor, " pairs"]
    rejected_tokens: Float[Tensor, " pairs"]
    score_chosen: Float[Tensor, " pairs"] | None = None
    score_rejected: Float[Tensor, " pairs"] | None = None

    @property
    def chosen_log_ratio(self) -> Float[Tensor, " pairs"]:
        """``a = log pi(y_w|x) - log pi_ref(y_w|x)`` in nats."""
        if self.reference_chosen is None:
            raise ValueError("the chosen log-ratio needs the reference's log-probs, and there are none")
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_log_ratio(self) -> Float[Tensor, " pairs"]:
        """``b = log pi(y_l|x) - log pi_ref(y_l|x)`` in nats."""
        if self.reference_rejected is None:
            raise ValueError("the rejected log-ratio needs the reference's log-probs, and there are none")
        return self.policy_rejected - self.reference_rejected


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss per pair, and the named terms that add up to it (``contrast``, ``calibration``, ``nll``).

    Diagnostics are averaged and logged beside the terms but are no part of the loss.
    """

    loss: Float[Tensor, " pairs"]
    terms: dict[str, Float[Tensor, " pairs"]]
    diagnostics: dict[str, Float[Tensor, " pairs"]] = field(default_factory=dict)
