"""What every loss is: a small module from PairLogps to LossOutput, one value per pair in nats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from caldpo.losses.search_space import SearchSpace
from caldpo.types import LossOutput, PairLogps


class PreferenceLoss(nn.Module, ABC):
    """A loss per preference pair.

    A loss gets its own fields through its constructor and never sees the configuration. It declares
    what it needs; no code asks for its name.
    """

    needs_reference: bool = True  # whether the training loss reads the reference's log-probs
    needs_rejected: bool = True  # whether it reads the rejected responses' log-probs
    needs_scores: bool = False  # whether it reads ground-truth rewards of the pairs
    score_range: tuple[float, float] | None = None  # what these have to lie in: (0, 1) are quantiles
    takes_unpaired: bool = False  # whether a row may have one response and a label
    pairwise: bool = True  # whether it reads differences of chosen and rejected, False: each response by itself
    length_normalised: bool = False  # whether it contrasts means per token rather than sums
    depends_on_batch: bool = False  # whether a pair's loss reads the other pairs of the optimiser step
    search_space: ClassVar[SearchSpace] = {}  # of its own keys; empty: nothing to search but the learning rate

    @property
    @abstractmethod
    def formula(self) -> str:
        """The loss per pair with its numbers filled in, as logged at the start of a run."""

    @property
    def implicit_reward_beta(self) -> float | None:
        """Reward per nat of a response's summed log-ratio, by the loss's own derivation.

        None where the derivation has no implicit reward, or one that is no multiple of the log-ratio. Not the unit of
        ``rewards/*``, which is one for all losses: ``reward_beta`` of the configuration.
        """
        return None

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]] | None:
        """What the loss's own derivation calls the rewards of chosen and rejected; None where it has none."""
        beta = self.implicit_reward_beta
        return None if beta is None else (beta * logps.chosen_log_ratio, beta * logps.rejected_log_ratio)

    @abstractmethod
    def forward(self, logps: PairLogps) -> LossOutput:
        """Loss per pair, shape ``(pairs,)``, and the terms that add up to it."""
