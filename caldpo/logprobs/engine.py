"""From tokens to the summed log-probs of responses, by a causal language model.

``log pi(y|x) = sum_t log softmax(logits[t-1])[y_t]`` over the response's tokens, EOS included, in nats. The model's
own forward is run with its output head short-circuited: the hidden states are taken on their way into the head, and
:mod:`caldpo.logprobs.chunked` does the rest at the positions that predict a response token and nowhere else.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from caldpo.logprobs.chunked import token_logprobs
from caldpo.logprobs.fused_loss import PairLoss, ResponseTokens, require_dependence, streamed_loss
from caldpo.logprobs.head import NoHeadError, OutputHead, head_layer, hooked, output_head
from caldpo.models.model_forward import accepted_names, use_rowwise_frequencies
from caldpo.types import PairBatch

log = logging.getLogger(__name__)

LOGITS_CACHE_MIB = 64
"""Default of ``logits_cache_mib``: a pair of 512 tokens in all fits at a vocabulary of 32,000."""


class LogprobEngine:
    """Log-probs of responses by one model, in whatever state (adapters, training mode) the model is.

    The head is looked at once, at the first call. A model whose head cannot be taken apart computes its own logits
    at the positions that predict response tokens, which is announced: exact as well, but ``[tokens, vocab]``.

    Args:
        model: a causal language model of transformers' interface (``forward(...).logits``).
        logits_cache_mib: MiB of softmax that are kept for the backward pass; what is beyond is computed again.
    """

    def __init__(self, model: nn.Module, logits_cache_mib: int = LOGITS_CACHE_MIB) -> None:
        self.model, self.kept_bytes = model, logits_cache_mib * 2**20
        use_rowwise_frequencies(model)
        self._accepted = accepted_names(model)  # looked up here once, rather than at every forward
        self._head: OutputHead | None = None
        self._asked = False

    def __call__(self, batch: PairBatch) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Summed log-probs of the chosen and of the rejected responses, nats, from one forward over both."""
        both = self.responses(batch.predicts, batch.targets, batch.response, 2 * batch.pairs, **batch.model_inputs())
        return both[: batch.pairs], both[batch.pairs :]

    def loss(
        self, batch: PairBatch, pair_loss: PairLoss
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """The loss summed over pairs, differentiable once, and the two log-probs that it was computed from, detached.

        The same as ``pair_loss(*self(batch), slice(None))``, but for a third of the memory and less work: see
        :mod:`caldpo.logprobs.fused_loss`.

        Args:
            batch: the pairs.
            pair_loss: see :data:`caldpo.logprobs.fused_loss.PairLoss`.
        """
        head, inputs = self.head, batch.model_inputs()
        if head is None:
            chosen, rejected = self(batch)
            value = pair_loss(chosen, rejected, slice(0, batch.pairs))
            if chosen.requires_grad:
                require_dependence(value)
            return value, chosen.detach(), rejected.detach()
        total, both = streamed_loss(
            self._run(batch.predicts, inputs, whole=False),
            head.layer.weight,
            head.layer.bias,
            ResponseTokens(batch.targets, batch.response, batch.pair_tokens),
            pair_loss,
            transform=head.transform,
            kept_bytes=self.kept_bytes,
        )
        return total, both[: batch.pairs], both[batch.pairs :]

    def responses(
        self,
        predicts: Int[Tensor, " tokens"],
        targets: Int[Tensor, " tokens"],
        response: Int[Tensor, " tokens"],
        count: int,
        **inputs: Any,
    ) -> Float[Tensor, " responses"]:
        """Summed log-probs of ``count`` responses, nats.

        Args:
            predicts: places in the flattened ``input_ids`` whose hidden states predict the targets.
            targets: the response tokens.
            response: which response each belongs to.
            count: of responses.
            inputs: of the model's forward.
        """
        head = self.head
        hidden_or_logits = self._run(predicts, inputs, whole=head is None)
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
                kept_bytes=self.kept_bytes,
            )
        return values.new_zeros(count).index_add(0, response, values)

    @property
    def head(self) -> OutputHead | None:
        """The model's output head, None if its own logits have to be taken."""
        if not self._asked:
            self._asked = True
            try:
                self._head = output_head(self.model)
            except NoHeadError as reason:
                log.warning(
                    "%s: %s; its own logits are taken, of shape [response tokens, vocabulary]",
                    type(self.model).__name__,
                    reason,
                )
        return self._head

    def _run(self, at: Tensor, inputs: dict[str, Any], whole: bool) -> Tensor:
        """Hidden states at the marked places of the flattened row, or with ``whole`` the model's logits there."""
        seen: list[Tensor] = []

        def take(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            picked = arguments[0].flatten(0, 1).index_select(0, at)
            seen.append(picked)
            return (picked[None] if whole else arguments[0][:1, :1].detach(), *arguments[1:])

        layer = head_layer(self.model)
        accepted = self._accepted
        inputs = {name: value for name, value in inputs.items() if accepted is None or name in accepted}
        if layer is None:
            logits = self.model(**inputs, use_cache=False).logits
            return logits.flatten(0, 1).index_select(0, at)
        with hooked(layer, take):
            logits = self.model(**inputs, use_cache=False).logits
        return logits[0] if whole else seen[0]


def pair_logprobs(model: nn.Module, batch: PairBatch) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Summed log-probs of the chosen and of the rejected responses, nats: the engine for one batch."""
    return LogprobEngine(model)(batch)


def response_logprobs(
    model: nn.Module,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    response_mask: Bool[Tensor, "rows length"],
) -> Float[Tensor, " rows"]:
    """Summed log-probs of each row's marked tokens, nats.

    Args:
        model: as in :class:`LogprobEngine`.
        input_ids: tokens, padded on either side.
        attention_mask: True on tokens, False on padding.
        response_mask: True on the tokens whose log-probs are summed. Never at the first token of a row, which
            nothing predicts.
    """
    rows, columns = response_mask.nonzero(as_tuple=True)
    return LogprobEngine(model).responses(
        rows * input_ids.shape[1] + columns - 1,
        input_ids[rows, columns],
        rows,
        len(input_ids),
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        position_ids=(attention_mask.long().cumsum(1) - 1).clamp_min(0),
    )
