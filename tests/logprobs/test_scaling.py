"""Memory does not grow with the vocabulary, and FLOPs per pair not with the number of pairs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from caldpo.data.collate import Layout, collate
from caldpo.data.pair import TokenizedPair
from caldpo.logprobs import LOGITS_CACHE_MIB, LogprobEngine
from caldpo.logprobs.fused_loss import ResponseTokens, fused_pair_loss
from caldpo.logprobs.lm_head_ops import CHUNK_BYTES
from caldpo.logprobs.packed_attention import use_packed_attention
from tests.logprobs.models import make
from tests.logprobs.test_memory import Alive

HIDDEN, PAIRS, RESPONSE = 4, 3, 40


@pytest.mark.parametrize("vocabulary", [8_192, 32_000, 131_072])
def test_memory_is_flat_in_the_vocabulary(vocabulary: int) -> None:
    """Beyond the head's weights and their gradient, one bound for all: a part, and what one pair may keep."""
    tokens = 2 * PAIRS * RESPONSE
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = torch.randn(vocabulary, HIDDEN, requires_grad=True)
    of = torch.arange(tokens) // RESPONSE  # chosen 0, rejected 0, chosen 1, ...
    targets = ResponseTokens(torch.randint(vocabulary, (tokens,)), of // 2 + PAIRS * (of % 2), [2 * RESPONSE] * PAIRS)
    with Alive() as memory:
        value, _ = fused_pair_loss(
            hidden, weight, None, targets, lambda c, r, _: (c - r).sum(), cache_bytes=LOGITS_CACHE_MIB * 2**20
        )
        torch.autograd.grad(value, [hidden, weight])
    gradients = 2 * weight.nbytes  # transposed, and as it is handed over
    assert memory.most - gradients <= CHUNK_BYTES["cpu"] + LOGITS_CACHE_MIB * 2**20 + 2**20
    if vocabulary == 131_072:  # the logits of all tokens would not be within that bound
        assert tokens * vocabulary * 4 > CHUNK_BYTES["cpu"] + LOGITS_CACHE_MIB * 2**20 + 2**20


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_operations_per_pair_are_flat_in_the_number_of_pairs(layout: Layout) -> None:
    """Packed rows grow linearly: no pair attends to another, nor is there a mask of tokens x tokens."""
    model = make("llama")
    if layout == "packed":
        use_packed_attention(model)
    engine = LogprobEngine(model)
    assert engine.head is not None  # asked before anything is counted

    def operations(pairs: int) -> int:
        same = [TokenizedPair([3] * 9, [4] * 7, [5] * 6, None, None, i, "") for i in range(pairs)]
        with FlopCounterMode(display=False) as counter:
            loss, _, _ = engine.loss(collate(same, 0, layout=layout), lambda c, r, _: (c - r).sum())
            loss.backward()
        return counter.get_total_flops()

    first, second = operations(1), operations(2)
    fixed = 2 * first - second
    assert 0 <= fixed < 0.01 * first  # the one position at which the model's own head still runs
    assert operations(16) == fixed + 16 * (first - fixed)
