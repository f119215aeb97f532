"""What every loss is: a small module from PairLogps to LossOutput, one value per pair in nats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.losses.exact_buffers import ExactBuffers
from caldpo.losses.search_space import SearchSpace
from caldpo.types import Alignment, LossOutput, PairBatch, PairLogps, ReferenceMove, StepStatistics


class PreferenceLoss(ExactBuffers, ABC):
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
    depends_on_batch: bool = False  # whether a pair's loss reads the other pairs of the optimiser step, see observe
    needs_mismatched: bool = False  # whether observe reads log-probs of other prompts' responses as well
    weighs_tokens: bool = False  # whether log-probs are sums of weighed tokens in training, see weighed
    reference_move: ReferenceMove | None = None  # how the reference moves during training; None: it stays
    alignment: Alignment | None = None  # whether observe reads log-probs of the policy's own tokens, and which
    search_space: ClassVar[SearchSpace] = {}  # of its own keys; empty: nothing to search but the learning rate

    @property
    def formula(self) -> str:
        """The loss per pair with its numbers filled in, as reports show it; its class's name where it has none."""
        return type(self).__name__

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

    @property
    def unmodified(self) -> PreferenceLoss:
        """The loss without its modifiers: itself."""
        return self

    def weighed(self, batch: PairBatch, step: int) -> PairBatch:
        """The training batch with the weights of its tokens, after ``step`` optimiser steps: itself where all are 1."""
        return batch

    @abstractmethod
    def forward(self, logps: PairLogps) -> LossOutput:
        """Loss per pair, shape ``(pairs,)``, and the terms that add up to it."""

    def observe(self, step: PairLogps, mismatched: PairLogps | None = None, *, training: bool = True) -> StepStatistics:
        """Compute what the losses of the pairs need of all pairs, where the loss ``depends_on_batch``.

        Called without gradient before the first backward pass of an optimiser step, with all pairs of the step over
        all ranks and micro-batches, in the step's order and without filler. Each pair's values then are in the
        ``of_step`` that :meth:`forward` gets, and the ``state`` is written into the buffers once the step is done. The
        loss itself must not be changed here.

        Args:
            step: the log-probs without dropout.
            mismatched: the same prompts, each with the responses of the next pair; where the loss ``needs_mismatched``
                and the step has two pairs or more.
            training: False for the held-out pairs, all together; their ``state`` is dropped.
        """
        raise NotImplementedError

    def of_step(self, logps: PairLogps) -> Mapping[str, Float[Tensor, " pairs"]]:
        """The statistics of these pairs' step, by name; these pairs are the step where nobody computed them before."""
        if logps.of_step is not None:
            return logps.of_step
        with torch.no_grad():
            return self.observe(logps).per_pair
