"""Naive log-probs, losses and gradients: full logits, one unpadded sequence at a time, formulas written out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caldpo.data.pair import TokenizedPair
from caldpo.data.tokenize import truncate
from tests.logprobs.models import VOCABULARY

LIMIT = 22  # tokens; the longest of PAIRS are that long


def make_pairs() -> list[TokenizedPair]:
    """Pairs of every awkward kind; the last one is filler."""
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(count)]

    prefix = ids(8)
    cut = truncate(ids(30), ids(4), ids(18), max_length=LIMIT, max_prompt_length=9, bos=None)
    assert [len(part) for part in cut] == [9, 4, 13]
    texts = [
        (ids(5), ids(6), ids(3)),
        (ids(1), ids(1), ids(1)),  # one token each
        (ids(6), prefix + ids(2), prefix + ids(5)),  # a long common prefix
        cut,  # a prompt beyond the limit
        (ids(2), ids(1), ids(20)),  # very different lengths
        (ids(3), ids(4), ids(7)),  # the filler
    ]
    return [TokenizedPair(p, c, r, None, None, i, "") for i, (p, c, r) in enumerate(texts)]


PAIRS = make_pairs()
WEIGHTS = [1.0] * (len(PAIRS) - 1) + [0.0]
REAL = len(PAIRS) - 1
# log-ratios of chosen and rejected responses, nats
OFFSETS = torch.tensor([[0.5, -1.5, 2.0, 0.0, -3.0, 9.0], [1.0, 0.25, -2.0, 4.0, 0.5, -9.0]], dtype=torch.float64)


def sequences(pairs: Sequence[TokenizedPair]) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of every sequence: all chosen, then all rejected."""
    return [(p.prompt_ids, p.chosen_ids) for p in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]


def response_logits(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """Logits at the positions that predict the response, of one sequence alone."""
    ids = torch.tensor([prompt + response])
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return logits[len(prompt) - 1 : -1]


def logprob(logits: Tensor, response: list[int]) -> Tensor:
    """Sum of ``z_y - log sum exp z``, in the dtype of the logits, at least float32."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    picked = torch.stack([z[row, token] for row, token in enumerate(response)])
    return (picked - z.exp().sum(-1).log()).sum()


def logprobs(model: Any, pairs: Sequence[TokenizedPair], logits: Callable[..., Tensor] = response_logits) -> Tensor:
    """Of chosen (first row) and rejected responses (second row), with their graph."""
    values = [logprob(logits(model, prompt, response), response) for prompt, response in sequences(pairs)]
    return torch.stack(values).view(2, -1)


def dpo(chosen: Tensor, rejected: Tensor, beta: float = 0.1) -> Tensor:
    """``-log sigmoid(beta (a - b))`` of log-ratios."""
    return torch.log1p(torch.exp(-beta * (chosen - rejected)))


def cal_dpo(chosen: Tensor, rejected: Tensor, beta: float = 0.1) -> Tensor:
    """``-log sigmoid(a - b) + (a - 1/(2 beta))^2 + (b + 1/(2 beta))^2``."""
    return dpo(chosen, rejected, 1.0) + (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"dpo": dpo, "cal_dpo": cal_dpo}


@dataclass(frozen=True)
class Result:
    """What one model makes of the pairs.

    Args:
        logprobs: of chosen and rejected responses, ``[2, pairs]``.
        losses: summed over the real pairs, by name.
        gradients: of each loss, by the name of the parameter.
    """

    logprobs: Tensor
    losses: dict[str, Tensor]
    gradients: dict[str, dict[str, Tensor]]

    def reference(self) -> Tensor:
        """A reference's log-probs for which the log-ratios are OFFSETS."""
        return (self.logprobs.double() - OFFSETS).float()


def long_way(model: Any, reference: Tensor | None = None, logits: Callable[..., Tensor] = response_logits) -> Result:
    """Log-probs, losses and gradients of PAIRS; without a reference given, that of the result."""
    values = logprobs(model, PAIRS, logits)
    bare = Result(values.detach(), {}, {})
    ratios = values - (bare.reference() if reference is None else reference).to(values.dtype)
    for name, loss in LOSSES.items():
        value = loss(*ratios)[:REAL].sum()
        bare.losses[name] = value.detach()
        bare.gradients[name] = gradients(value, model, again=True)
    return bare


def gradients(value: Tensor, model: Any, *, again: bool = False) -> dict[str, Tensor]:
    """Of a scalar by every parameter that is trained, 0 where it has none."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    actual = torch.autograd.grad(
        value, list(named.values()), allow_unused=True, materialize_grads=True, retain_graph=again
    )
    return dict(zip(named, actual, strict=True))
