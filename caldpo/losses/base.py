"""What every loss is: a small module from PairLogps to LossOutput, one value per pair in nats."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from caldpo.types import LossOutput, PairLogps


class PreferenceLoss(nn.Module, ABC):
    """A loss per preference pair.

    A loss gets its own fields through its constructor and never sees the configuration. It declares
    what it needs; no code asks for its name.
    """

    needs_reference: bool = True  # whether the training loss reads the reference's log-probs
    needs_rejected: bool = True  # whether it reads the rejected responses' log-probs
    needs_scores: bool = False  # whether it reads ground-truth rewards of the pairs

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

    @abstractmethod
    def forward(self, logps: PairLogps) -> LossOutput:
        """Loss per pair, shape ``(pairs,)``, and the terms that add up to it."""
