"""Compute the summed log-probs of responses by a causal language model.

``log pi(y|x) = sum_t w_t log softmax(logits[t-1])[y_t]`` over the response's tokens, EOS included, in nats; the weights
``w_t`` are 1 unless the batch has others. The model's
own forward runs with its output head bypassed: a hook takes the hidden states before the head, and
:mod:`caldpo.logprobs.chunked` computes log-probs only at the positions that predict a response token.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from caldpo.logprobs.chunked import token_alignments, token_logprobs
from caldpo.logprobs.fused_loss import PairLoss, ResponseTokens, fused_pair_loss, require_dependence
from caldpo.logprobs.head import NoHeadError, OutputHead, head_layer, hooked, output_head
from caldpo.models.model_forward import accepted_names, use_rowwise_frequencies
from caldpo.types import Alignment, PairBatch

log = logging.getLogger(__name__)

LOGITS_CACHE_MIB = 64
"""Default of ``logits_cache_mib``: a pair of 512 tokens in all fits at a vocabulary of 32,000."""


class LogprobEngine:
    """Computes log-probs of responses by one model, in its current state (adapters, training mode).

    The head is examined at the first call. A model whose head cannot be separated computes its own logits at the
    positions that predict response tokens, with a warning: exact as well, but ``[tokens, vocab]``.

    Args:
        model: a causal language model of transformers' interface (``forward(...).logits``).
        logits_cache_mib: MiB of softmax that are cached for the backward pass; the rest is recomputed.
    """

    def __init__(self, model: nn.Module, logits_cache_mib: int = LOGITS_CACHE_MIB) -> None:
        self.model, self.cache_bytes = model, logits_cache_mib * 2**20
        use_rowwise_frequencies(model)
        self._accepted = accepted_names(model)  # once, rather than at every forward
        self._head: OutputHead | None = None
        self._head_examined = False

    def __call__(self, batch: PairBatch) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Compute summed log-probs of chosen and rejected responses, nats, in one forward over both."""
        both = self.responses(
            batch.predicts,
            batch.targets,
            batch.response,
            2 * batch.pairs,
            token_weights=batch.token_weights,
            **batch.model_inputs(),
        )
        return both[: batch.pairs], both[batch.pairs :]

    def loss(
        self, batch: PairBatch, pair_loss: PairLoss
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Compute the loss summed over pairs, differentiable once, and the two log-probs it is computed from, detached.

        The same as ``pair_loss(*self(batch), slice(None))``, with a third of the memory and less computation: see
        :mod:`caldpo.logprobs.fused_loss`.
        """
        head, inputs = self.head, batch.model_inputs()
        if head is None:
            chosen, rejected = self(batch)
            value = pair_loss(chosen, rejected, slice(0, batch.pairs))
            if chosen.requires_grad:
                require_dependence(value)
            return value, chosen.detach(), rejected.detach()
        total, both = fused_pair_loss(
            self._run(batch.predicts, inputs, full_logits=False),
            head.layer.weight,
            head.layer.bias,
            ResponseTokens(batch.targets, batch.response, batch.pair_tokens, batch.token_weights),
            pair_loss,
            transform=head.transform,
            cache_bytes=self.cache_bytes,
        )
        return total, both[: batch.pairs], both[batch.pairs :]

    def hidden_states(self, batch: PairBatch, at: Int[Tensor, " places"]) -> Float[Tensor, "places width"]:
        """Compute what the output head would get, at places of the batch's flattened tokens.

        Raises:
            NoHeadError: the head cannot be separated from the model.
        """
        if self.head is None:
            raise NoHeadError(f"{type(self.model).__name__} has no output head that can be separated")
        return self._run(at, batch.model_inputs(), full_logits=False)

    @torch.no_grad()
    def aligned(self, batch: PairBatch, alignment: Alignment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute summed log-probs of chosen and rejected responses, and those of the model's own tokens at the same
        places (see :data:`~caldpo.types.Alignment`), nats, in one forward and without gradient."""
        head, pairs = self.head, batch.pairs
        found = self._run(batch.predicts, batch.model_inputs(), full_logits=head is None)
        if head is None:
            logits = found.to(torch.promote_types(found.dtype, torch.float32)).log_softmax(dim=-1)
            values = logits.gather(1, batch.targets[:, None]).squeeze(1)
            own = logits.amax(dim=-1) if alignment == "greedy" else (2 * logits).logsumexp(dim=-1)
        else:
            weight, bias, transform = head.layer.weight, head.layer.bias, head.transform
            values = token_logprobs(found, weight, bias, batch.targets, transform=transform)
            own = token_alignments(found, weight, bias, alignment, transform=transform)
        both = torch.stack([values, own])
        if batch.token_weights is not None:
            both = both * batch.token_weights
        sums = both.new_zeros(2, 2 * pairs).index_add(1, batch.response, both)
        return sums[0, :pairs], sums[0, pairs:], sums[1, :pairs], sums[1, pairs:]

    def responses(
        self,
        predicts: Int[Tensor, " tokens"],
        targets: Int[Tensor, " tokens"],
        response: Int[Tensor, " tokens"],
        count: int,
        token_weights: Float[Tensor, " tokens"] | None = None,
        **inputs: Any,
    ) -> Float[Tensor, " responses"]:
        """Compute summed log-probs of ``count`` responses, nats.

        Args:
            predicts: indices into the flattened ``input_ids`` whose hidden states predict the targets.
            targets, response: the response tokens, and the response that each belongs to.
            count: of responses.
            token_weights: of the response tokens in the sums; None: 1.
            inputs: of the model's forward.
        """
        head = self.head
        hidden_or_logits = self._run(predicts, inputs, full_logits=head is None)
        if head is None:
            wide = hidden_or_logits.to(torch.promote_types(hidden_or_logits.dtype, torch.float32))
            values = -F.cross_entropy(wide, targets, reduction="none")
        else:
            values = token_logprobs(
                hidden_or_logits,
                head.layer.weight,
                head.layer.bias,
                targets,
                transform=head.transform,
                cache_bytes=self.cache_bytes,
            )
        if token_weights is not None:
            values = values * token_weights
        return values.new_zeros(count).index_add(0, response, values)

    @property
    def head(self) -> OutputHead | None:
        """The model's output head; None if its own logits have to be computed."""
        if not self._head_examined:
            self._head_examined = True
            try:
                self._head = output_head(self.model)
            except NoHeadError as reason:
                log.warning(
                    "%s: %s; its own logits are computed, of shape [response tokens, vocabulary]",
                    type(self.model).__name__,
                    reason,
                )
        return self._head

    def _run(self, at: Tensor, inputs: dict[str, Any], full_logits: bool) -> Tensor:
        """Compute hidden states at indices of the flattened row, or with ``full_logits`` the model's logits there."""
        captured: list[Tensor] = []

        def capture(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            picked = arguments[0].flatten(0, 1).index_select(0, at)
            captured.append(picked)
            return (picked[None] if full_logits else arguments[0][:1, :1].detach(), *arguments[1:])

        layer = head_layer(self.model)
        accepted = self._accepted
        inputs = {name: value for name, value in inputs.items() if accepted is None or name in accepted}
        if layer is None:
            logits = self.model(**inputs, use_cache=False).logits
            return logits.flatten(0, 1).index_select(0, at)
        with hooked(layer, capture):
            logits = self.model(**inputs, use_cache=False).logits
        return logits[0] if full_logits else captured[0]
