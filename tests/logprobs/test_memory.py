"""Neither forward nor backward pass allocates anything of the size [tokens, vocabulary]."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from caldpo.data.collate import Layout, collate
from caldpo.logprobs import LogprobEngine, lm_head_ops
from caldpo.logprobs.chunked import token_logprobs
from caldpo.logprobs.fused_loss import ResponseTokens, fused_pair_loss
from caldpo.logprobs.lm_head_ops import LogitTransform
from caldpo.models.model_source import prepare_for_training
from tests.logprobs.heads import draw
from tests.logprobs.models import make
from tests.logprobs.naive import PAIRS

TOKENS, HIDDEN, VOCABULARY, ROWS = 96, 4, 640, 6
PART = ROWS * VOCABULARY * 4  # bytes
CAPPED = LogitTransform(scale=0.5, cap=3.0)


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations have returned and that live, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.most = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_flatten(result)[0]:
            if isinstance(made, Tensor) and (key := made.untyped_storage()._cdata) not in given | self.alive.keys():
                self.alive[key] = made.untyped_storage().nbytes()
                weakref.finalize(made.untyped_storage(), self.alive.pop, key, None)
        self.largest = max([self.largest, *self.alive.values()])
        self.most = max(self.most, sum(self.alive.values()))
        return result


def full_pass(
    streamed: bool, kept: int, transform: LogitTransform, *, frozen: bool = False, backward: bool = True
) -> tuple[int, int]:
    """Most bytes alive in forward and backward, and those of one gradient of the head's weight."""
    head = draw(dtype=torch.float32, tokens=TOKENS, vocabulary=VOCABULARY, hidden=HIDDEN, bias=False, frozen=frozen)
    pairs = TOKENS // 2
    tokens = ResponseTokens(head.targets, torch.arange(TOKENS) // 2 + pairs * (torch.arange(TOKENS) % 2), [2] * pairs)
    keys: dict[str, Any] = {"transform": transform, "cache_bytes": kept}
    with Alive() as memory, torch.set_grad_enabled(backward):
        if streamed:
            value, _ = fused_pair_loss(head.hidden, head.weight, None, tokens, lambda c, r, _: (c - r).sum(), **keys)
        else:
            value = token_logprobs(head.hidden, head.weight, None, head.targets, **keys).sum()
        if backward:
            torch.autograd.grad(value, head.leaves())
    assert memory.largest <= PART
    return memory.most, 0 if frozen else VOCABULARY * HIDDEN * 4


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("transform", [LogitTransform(), CAPPED], ids=["identity", "capped"])
@pytest.mark.parametrize("kept", [0, 3, 100])
@pytest.mark.parametrize("streamed", [False, True])
def test_no_more_memory_than_the_cache_and_one_chunk(
    streamed: bool, kept: int, transform: LogitTransform, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cap needs its slope, another part. What is kept is used up; streamed and frozen heads keep nothing long."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PART)
    most, gradient = full_pass(streamed, kept * PART, transform, frozen=frozen)
    parts = 1 if transform.cap is None else 2
    if not streamed and not frozen:
        parts += min(kept, TOKENS // ROWS)
    small = 0.25 * PART  # hidden states, their gradients, sums
    assert most <= parts * PART + 1.2 * gradient + small
    assert most >= PART  # that it counts at all


@pytest.mark.parametrize("transform", [LogitTransform(), CAPPED], ids=["identity", "capped"])
def test_evaluation_keeps_nothing(transform: LogitTransform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a policy whose weights take gradients elsewhere: one part, and neither gradients nor their terms."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PART)
    most, _ = full_pass(False, 100 * PART, transform, backward=False)
    assert PART <= most <= 1.25 * PART


def test_the_count_sees_full_logits() -> None:
    """As a plain computation has them."""
    head = draw(dtype=torch.float32, tokens=TOKENS, vocabulary=VOCABULARY, hidden=HIDDEN, bias=False)
    with Alive() as memory:
        logits = head.hidden @ head.weight.T
        torch.log_softmax(logits, -1).sum().backward()
    assert memory.most >= 2 * TOKENS * VOCABULARY * 4


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_whole_model_makes_no_logits(
    layout: Layout, streamed: bool, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of all positions nor of those that predict responses."""
    vocabulary = 3000
    model = make("llama", packed=layout == "packed", vocab_size=vocabulary, tie_word_embeddings=False)
    if checkpointed:
        prepare_for_training(model, gradient_checkpointing=True, dropout=False).train()
    batch, engine = collate(PAIRS, 0, layout=layout), LogprobEngine(model, logits_cache_mib=0)
    rows = 5
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", rows * vocabulary * 4)
    assert engine.head is not None
    with Alive() as memory:
        if streamed:
            value = engine.loss(batch, lambda c, r, _: (c - r).sum())[0]
        else:
            chosen, rejected = engine(batch)
            value = (chosen - rejected).sum()
        value.backward()
    allowed = max(4 * model.lm_head.weight.numel(), rows * vocabulary * 4)
    assert memory.largest <= allowed
    assert len(batch.targets) * vocabulary * 4 > 1.2 * allowed
