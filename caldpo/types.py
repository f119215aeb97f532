"""The typed values that travel between data, engine, losses and metrics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class PairBatch:
    """Tokenised pairs: response ``i`` is the chosen, response ``pairs + i`` the rejected one of pair ``i``.

    Either padded, a row a response, or packed: one row in which each pair stands as prompt, chosen, rejected, told
    apart by ``spans``. What predicts which token of which response is written down, so that nothing is inferred
    from masks or a pad id. Not a dataclass: Lightning takes dataclasses apart and would round weights and scores to
    the precision of the model.

    Args:
        input_ids: tokens.
        position_ids: of each token in its own sequence, prompt included.
        attention_mask: True on tokens, False on padding.
        predicts: places in the flattened ``input_ids`` whose hidden states predict the targets.
        targets: the tokens of all responses, EOS included, pair by pair.
        response: which of the ``2 pairs`` responses each target belongs to.
        response_lengths: tokens of each response.
        pair_tokens: how many of the targets belong to each pair, in order; on the host.
        spans: lengths of prompt, chosen and rejected of each pair of a packed row; None for padded rows.
        weight: 1 for a real pair, 0 for filler that evens out ranks.
        index: row of the pair in its split, so that errors can name it and remembered values be found.
        split: name of the split; empty for pairs of none.
        score_chosen: ground-truth rewards, None when the data has none.
        score_rejected: likewise.
        step_pairs: real pairs in the whole optimiser step, over ranks and accumulation; None, of a batch that nobody
            planned: all micro-batches of the step have as many as this one.
        filler: no pair of the batch is real; on the host.
        places: of the pairs among those of the optimiser step, in its order, for losses that depend on the batch.
        ahead: all micro-batches of this rank in the step, in the step's first one, for such losses.
        mismatched: the same prompts, each with the responses of the step's next pair, for losses that need them.
        chosen_present: 1 where the row has a chosen response, 0 where an EOS alone is in its place; None: every row has
            both.
        rejected_present: likewise; both are given or neither.
        token_weights: of the targets, in the sums of log-probs and in the lengths; None: 1.
    """

    def __init__(
        self,
        *,
        input_ids: Int[Tensor, "rows length"],
        position_ids: Int[Tensor, "rows length"],
        attention_mask: Bool[Tensor, "rows length"],
        predicts: Int[Tensor, " targets"],
        targets: Int[Tensor, " targets"],
        response: Int[Tensor, " targets"],
        response_lengths: Int[Tensor, " responses"],
        pair_tokens: tuple[int, ...],
        spans: tuple[tuple[int, int, int], ...] | None,
        weight: Float[Tensor, " pairs"],
        index: Int[Tensor, " pairs"],
        split: str,
        score_chosen: Float[Tensor, " pairs"] | None,
        score_rejected: Float[Tensor, " pairs"] | None,
        step_pairs: int | None,
        filler: bool = False,
        places: Int[Tensor, " pairs"] | None = None,
        ahead: tuple[PairBatch, ...] = (),
        mismatched: PairBatch | None = None,
        chosen_present: Float[Tensor, " pairs"] | None = None,
        rejected_present: Float[Tensor, " pairs"] | None = None,
        token_weights: Float[Tensor, " targets"] | None = None,
    ) -> None:
        self.input_ids, self.position_ids, self.attention_mask = input_ids, position_ids, attention_mask
        self.predicts, self.targets, self.response = predicts, targets, response
        self.response_lengths, self.pair_tokens, self.spans = response_lengths, pair_tokens, spans
        self.weight, self.index, self.split = weight, index, split
        self.score_chosen, self.score_rejected = score_chosen, score_rejected
        self.step_pairs, self.filler = step_pairs, filler
        self.places, self.ahead, self.mismatched = places, ahead, mismatched
        self.chosen_present, self.rejected_present = chosen_present, rejected_present
        self.token_weights = token_weights

    @property
    def pairs(self) -> int:
        """Number of pairs, filler included."""
        return len(self.weight)

    def pairs_in_step(self, micro_batches: int) -> int:
        """Number of real pairs in the whole optimiser step, which has so many micro-batches over all ranks."""
        return self.pairs * micro_batches if self.step_pairs is None else self.step_pairs

    @property
    def tokens(self) -> int:
        """Number of tokens, padding included."""
        return self.input_ids.numel()

    @property
    def response_weights(self) -> Float[Tensor, "2 pairs"]:
        """1 for the responses of real pairs, chosen and rejected, 0 for those of filler and absent ones."""
        if self.chosen_present is None or self.rejected_present is None:
            return self.weight.expand(2, -1)
        return self.weight * torch.stack([self.chosen_present, self.rejected_present])

    def lengths(self) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Tokens of the chosen and of the rejected responses; the sums of their weights where tokens are weighed."""
        lengths = self.response_lengths.float()
        if self.token_weights is not None:
            lengths = torch.zeros_like(lengths).index_add(0, self.response, self.token_weights)
        return lengths[: self.pairs], lengths[self.pairs :]

    def places_in_response(self) -> Int[Tensor, " targets"]:
        """Place of each target in its response, from 0."""
        order = torch.arange(2 * self.pairs, device=self.response.device).view(2, -1).T.flatten()
        counts = self.response_lengths[order]
        starts = torch.zeros_like(counts).scatter(0, order, counts.cumsum(0) - counts)
        return torch.arange(len(self.response), device=self.response.device) - starts[self.response]

    def with_token_weights(self, weights: Float[Tensor, " targets"]) -> PairBatch:
        """The same batch, whose tokens weigh so much in the sums of log-probs."""
        return PairBatch(**{**vars(self), "token_weights": weights})

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of a causal language model's forward."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        if self.spans is None:
            mask = self.attention_mask.long()
            # padding stays at the last token's position: a row's positions say how long it is, see
            # caldpo.models.model_forward
            inputs["position_ids"] = self.position_ids.minimum(mask.sum(dim=1, keepdim=True) - 1)
            return inputs | {"attention_mask": mask}
        # A mask with four dimensions is final for transformers, which else would make one of tokens x tokens.
        unused = self.attention_mask.new_ones(1, 1, 1, 1)
        return inputs | {"attention_mask": unused, "spans": self.spans}

    def without_tokens(self) -> PairBatch:
        """The same pairs to be kept for later: what is known of each, and none of its tokens."""
        kept = copy.copy(self)
        kept.input_ids = kept.position_ids = kept.attention_mask = self.input_ids[:0]
        kept.predicts = kept.targets = kept.response = self.targets[:0]
        kept.ahead, kept.mismatched = (), None
        return kept

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PairBatch:
        """The same batch in page-locked memory (called by the data loader)."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> PairBatch:
        moved: dict[str, Any] = {n: move(v) if isinstance(v, Tensor) else v for n, v in vars(self).items()}
        moved["ahead"] = tuple(batch._each(move) for batch in self.ahead)
        moved["mismatched"] = self.mismatched and self.mismatched._each(move)
        return PairBatch(**moved)


Alignment = Literal["greedy", "sampled"]
"""Log-prob of the policy's own token where a response has another: of its likeliest one, or the logarithm of the mean
probability of a drawn one, ``log sum_v p_v^2``."""


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed response log-probs in nats, one value per pair, and response lengths in tokens.

    The reference's are None while a reference-free loss trains. ``chosen_present`` and ``rejected_present`` are 1 where
    the row has that response, else 0; None: every row has both. ``of_step`` holds, by name and per pair, what a loss
    that depends on the batch computed over all pairs of the optimiser step; None: these pairs are all.
    ``chosen_alignment`` and ``rejected_alignment`` are sums over the response's tokens, nats, of what :data:`Alignment`
    names; None where nobody asked for them.
    """

    policy_chosen: Float[Tensor, " pairs"]
    policy_rejected: Float[Tensor, " pairs"]
    reference_chosen: Float[Tensor, " pairs"] | None
    reference_rejected: Float[Tensor, " pairs"] | None
    chosen_tokens: Float[Tensor, " pairs"]
    rejected_tokens: Float[Tensor, " pairs"]
    score_chosen: Float[Tensor, " pairs"] | None = None
    score_rejected: Float[Tensor, " pairs"] | None = None
    chosen_present: Float[Tensor, " pairs"] | None = None
    rejected_present: Float[Tensor, " pairs"] | None = None
    of_step: Mapping[str, Float[Tensor, " pairs"]] | None = None
    chosen_alignment: Float[Tensor, " pairs"] | None = None
    rejected_alignment: Float[Tensor, " pairs"] | None = None

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


def assembler(
    batch: PairBatch,
    reference: tuple[Tensor | None, Tensor | None],
    of_step: Mapping[str, Tensor] | None = None,
) -> Callable[[Tensor, Tensor, slice], PairLogps]:
    """What makes :class:`PairLogps` of the policy's log-probs of some of the batch's pairs, chosen and rejected.

    Args:
        batch: the pairs.
        reference: the reference's log-probs of all of them; None while a reference-free loss trains.
        of_step: what the loss computed over all pairs of the step, for those of the batch.
    """
    present = batch.chosen_present, batch.rejected_present
    values = (*reference, *batch.lengths(), batch.score_chosen, batch.score_rejected, *present)

    def assemble(chosen: Tensor, rejected: Tensor, rows: slice) -> PairLogps:
        some: list[Any] = [None if value is None else value[rows] for value in values]
        statistics = None if of_step is None else {name: value[rows] for name, value in of_step.items()}
        return PairLogps(chosen, rejected, *some, of_step=statistics)  # type: ignore[misc]  # some are fewer

    return assemble


@dataclass(frozen=True, slots=True)
class ReferenceMove:
    """How the reference follows the policy during training."""

    every: int  # optimiser steps
    share: float  # of the policy's weights in the moved reference; the rest are its own


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """What a loss that depends on the batch computed over all pairs of an optimiser step, without gradient."""

    per_pair: dict[str, Float[Tensor, " pairs"]]  # by name, in the order of the pairs
    state: dict[str, Tensor] = field(default_factory=dict)  # values of the loss's buffers, by name, after the step


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss per pair, and the named terms that add up to it (``contrast``, ``calibration``, ``nll``).

    Diagnostics are averaged and logged beside the terms but are no part of the loss.
    """

    loss: Float[Tensor, " pairs"]
    terms: dict[str, Float[Tensor, " pairs"]]
    diagnostics: dict[str, Float[Tensor, " pairs"]] = field(default_factory=dict)
