"""What a modifier is: a kind says at which place of a loss's computation it acts, a subclass what it does there.

The places, whatever the order in which modifiers are named: tokens are weighed when log-probs are summed, the reference
moves, log-ratios are shifted, beta is scaled, the loss is computed, pairs are weighed, the step's objective is formed,
terms are added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.exact_buffers import ExactBuffers
from caldpo.types import Alignment, LossOutput, PairBatch, PairLogps, ReferenceMove, StepStatistics

Losses = Callable[[PairLogps], Tensor]
"""The loss of each pair as the modifiers before this one leave it."""


class Modifier(ExactBuffers, ABC):
    """Changes how a loss of pairs is computed. Its settings are its constructor's arguments.

    Like a loss it declares what it needs; nobody asks for its name but messages.
    """

    name: ClassVar[str]  # option of the group ``modifier``
    needs_reference: ClassVar[bool] = False  # log-ratios of the training pairs
    needs_scores: ClassVar[bool] = False  # ground-truth rewards of the pairs
    takes_unpaired: ClassVar[bool] = False  # it has a meaning for rows with one response, where the loss takes such
    depends_on_batch: bool = False  # it reads all pairs of the optimiser step, in observe
    alignment: Alignment | None = None  # as of a loss: log-probs of the policy's own tokens, in observe

    def check(self, loss: PreferenceLoss) -> None:
        """Refuse losses that cannot be modified so, by name.

        Raises:
            CaldpoError: with what to do instead.
        """
        if not loss.needs_rejected:
            raise self.refusal(loss, "reads no rejected responses, and a modifier is of pairs")
        if self.needs_reference and not loss.needs_reference:
            raise self.refusal(loss, "trains without a reference, and this modifier reads log-ratios")

    def refusal(self, loss: PreferenceLoss, why: str, remedy: str = "") -> CaldpoError:
        """Make the error of a loss that this modifier cannot change."""
        return CaldpoError(
            f"cannot modify the loss {type(loss).__name__}, {loss.formula}: it {why}",
            key="modifier",
            value=self.name,
            remedy=remedy or f"choose another loss, or leave {self.name} out of modifier=[...]",
        )

    def formula(self, inner: str) -> str:
        """Write the modified formula around the one of the loss so far."""
        return inner

    @property
    def note(self) -> str:
        """Say what the formula does not show, such as what a symbol stands for; empty for nothing."""
        return ""

    def observe(self, step: PairLogps, losses: Losses, *, training: bool) -> StepStatistics:
        """Compute what the pairs need of their whole optimiser step, as :meth:`PreferenceLoss.observe`.

        Args:
            step: all pairs, with the statistics of the loss and of earlier modifiers in ``of_step``.
            losses: of these pairs.
            training: False for the held-out pairs.
        """
        raise NotImplementedError


class TokenWeight(Modifier):
    """Weighs the tokens of responses when log-probs are summed, of policy and reference alike, in training only.

    The responses' lengths in tokens become the sums of the weights. A response without a partner stays whole.
    """

    takes_unpaired = True

    def check(self, loss: PreferenceLoss) -> None:
        super().check(loss)
        if loss.needs_mismatched:
            raise self.refusal(loss, "also reads the responses to other prompts, which have no partner to compare with")

    @abstractmethod
    def weights(self, batch: PairBatch, step: int) -> Float[Tensor, " targets"]:
        """Weigh each response token of a batch, after ``step`` optimiser steps; float32, whatever the precision."""

    @staticmethod
    def shared_lengths(batch: PairBatch) -> Int[Tensor, " pairs"]:
        """Tokens that both responses of each row have; all of a response without a partner."""
        lengths = batch.response_lengths.view(2, -1)
        if batch.chosen_present is not None and batch.rejected_present is not None:
            present = torch.stack([batch.chosen_present, batch.rejected_present]) > 0
            lengths = torch.where(present, lengths, lengths.amax(dim=0))  # an absent one has an EOS in its place
        return lengths.amin(dim=0)


class Shift(Modifier):
    """Changes the log-probs that the loss sees."""

    @abstractmethod
    def shifted(self, logps: PairLogps, loss: PreferenceLoss) -> PairLogps:
        """Return the log-probs for the loss."""


class BetaScale(Modifier):
    """Multiplies the loss's beta."""

    needs_reference = True
    depends_on_batch = True

    @abstractmethod
    def factors(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        """Return the factor of each pair's beta."""


class PairWeight(Modifier):
    """Multiplies the loss of each pair, and its terms."""

    chooses_pairs: ClassVar[bool] = False  # some weigh 0: it chooses which pairs of the step count

    def check(self, loss: PreferenceLoss) -> None:
        super().check(loss)
        if loss.depends_on_batch:
            raise self.refusal(loss, "computes a pair's loss from the other pairs of the step: it has no weight alone")

    @abstractmethod
    def weights(self, logps: PairLogps, loss: PreferenceLoss) -> Float[Tensor, " pairs"]:
        """Weigh each pair."""


class StepObjective(Modifier):
    """Replaces the mean over the pairs of an optimiser step by another function of their losses."""

    depends_on_batch = True

    def check(self, loss: PreferenceLoss) -> None:
        super().check(loss)
        if loss.depends_on_batch:
            raise self.refusal(loss, "is itself a function of all pairs of the step")

    @abstractmethod
    def objective(self, output: LossOutput, logps: PairLogps) -> LossOutput:
        """Return losses whose mean over the step, and its gradient, are the objective's."""


class AddedTerm(Modifier):
    """Adds a term to the loss of each pair, last: it is neither weighed nor part of a step's objective."""

    @abstractmethod
    def term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        """Compute the term, its weight included."""


class ReferenceUpdate(Modifier):
    """Moves the reference during training: see :class:`caldpo.reference.moving_reference.MovingReference`."""

    needs_reference = True

    move: ReferenceMove

    def check(self, loss: PreferenceLoss) -> None:
        super().check(loss)
        if loss.needs_mismatched:
            raise self.refusal(loss, "also reads the reference's log-probs of responses to other prompts")


ORDER: tuple[type[Modifier], ...] = (
    TokenWeight,
    ReferenceUpdate,
    Shift,
    PairWeight,
    BetaScale,
    StepObjective,
    AddedTerm,
)
"""By kind, the order in which modifiers read the pairs of a step, and in which a formula is written around the loss."""
