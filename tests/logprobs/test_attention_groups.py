"""Responses of one length attended to in one call: the same numbers, to the last bit, as one call per response."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from caldpo.logprobs import packed_attention
from caldpo.logprobs.attention_groups import Spans, length_groups

HEADS, SIZE = 4, 16


def draw_spans(pairs: int, seed: int) -> Spans:
    rng = random.Random(seed)
    return tuple((rng.choice((5, 6)), rng.randint(1, 7), rng.randint(1, 7)) for _ in range(pairs))


def attention(
    spans: Spans, key_heads: int, dtype: torch.dtype, dropout: float = 0.0, softcap: float | None = None
) -> list[Tensor]:
    """The output of a packed row, and the gradients of query, key and value."""
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int) -> Tensor:
        values = torch.randn(1, sum(map(sum, spans)), heads, SIZE, generator=generator, dtype=torch.float64)
        return values.to(dtype).transpose(1, 2).requires_grad_()

    inputs = draw(HEADS), draw(key_heads), draw(key_heads)
    slope = draw(HEADS).detach().transpose(1, 2)
    torch.manual_seed(0)
    output = packed_attention.attend_by_response(*inputs, spans, SIZE**-0.5, softcap=softcap, dropout=dropout)
    return [output, *torch.autograd.grad(output, inputs, slope)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("key_heads", [HEADS, HEADS // 2])
def test_values_and_gradients_are_those_of_one_call_per_response(
    dtype: torch.dtype, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = draw_spans(pairs=24, seed=1)
    assert length_groups(spans) is not None
    grouped = attention(spans, key_heads, dtype)
    monkeypatch.setattr(packed_attention, "length_groups", lambda spans: None)
    apart = attention(spans, key_heads, dtype)
    for one, other in zip(grouped, apart, strict=True):
        assert torch.equal(one, other)


def test_soft_capped_scores_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = draw_spans(pairs=24, seed=2)
    grouped = attention(spans, HEADS, torch.float64, softcap=3.0)
    monkeypatch.setattr(packed_attention, "length_groups", lambda spans: None)
    for one, other in zip(grouped, attention(spans, HEADS, torch.float64, softcap=3.0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_call_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one for each response where lengths hardly recur, or where dropout draws for each."""
    shapes: list[tuple[int, int]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def count(query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
        shapes.append((query.shape[0], query.shape[2]))
        return attend(query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    recurring = ((3, 2, 4), (3, 4, 2), (2, 3, 5))
    attention(recurring, HEADS, torch.float32)
    assert sorted(shapes) == [(3, 5), (3, 7)]
    for spans, dropout in ((((3, 2, 4), (3, 6, 8)), 0.0), (recurring, 0.1)):
        shapes.clear()
        attention(spans, HEADS, torch.float32, dropout=dropout)
        assert [sequences for sequences, _ in shapes] == [1] * 2 * len(spans)


def test_every_token_is_ordered_and_comes_back() -> None:
    spans = draw_spans(pairs=24, seed=3)
    groups = length_groups(spans)
    assert groups is not None
    expected: list[list[int]] = []
    start = 0
    for prompt, chosen, rejected in spans:
        row = list(range(start, start + prompt + chosen + rejected))
        expected += [row[: prompt + chosen], row[:prompt] + row[prompt + chosen :]]
        start = row[-1] + 1
    actual, position = [], 0
    for count, length in groups.sequences:
        for _ in range(count):
            actual.append(groups.tokens[position : position + length].tolist())
            position += length
    assert sorted(actual) == sorted(expected)
    assert groups.tokens[groups.back].tolist() == list(range(start))
    assert len({length for _, length in groups.sequences}) == len(groups.sequences)
