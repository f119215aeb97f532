"""Log-probs of tokens chunk by chunk, against autograd on all float64 logits at once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from caldpo.logprobs import lm_head_ops
from caldpo.logprobs.chunked import in_autocast_dtype, token_logprobs
from caldpo.logprobs.lm_head_ops import HeadProducts, LogitTransform
from tests.logprobs.heads import KEPT, PARTS, ROW_BYTES, TOKENS, TRANSFORMS, Head, draw

FACTORS = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)


def ours(head: Head, transform: LogitTransform = TRANSFORMS["identity"], kept: int = 0) -> Tensor:
    return token_logprobs(head.hidden, head.weight, head.bias, head.targets, transform=transform, cache_bytes=kept)


def assert_exact(head: Head, transform: LogitTransform, kept: int, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    """Values and the gradients of a weighted sum."""
    actual, wanted = ours(head, transform, kept), head.full(transform)
    torch.testing.assert_close(actual.double(), wanted, rtol=rtol, atol=atol)
    factors = FACTORS[: len(actual)]
    theirs = torch.autograd.grad((wanted * factors).sum(), head.leaves())
    mine = torch.autograd.grad((actual * factors).sum(), head.leaves())
    for one, other, leaf in zip(mine, theirs, head.leaves(), strict=True):
        assert one.dtype == leaf.dtype
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    "keys", [{}, {"bias": False}, {"frozen": True}], ids=["with a bias", "without a bias", "frozen"]
)
def test_values_and_gradients(
    keys: dict[str, Any], transform: str, kept: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PARTS[part])
    assert_exact(draw(**keys), TRANSFORMS[transform], KEPT[kept])


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradcheck(transform: str, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences, so that not even autograd's own formulas are shared."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PARTS["uneven"])
    head = draw(frozen=frozen)
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: ours(
            Head(hidden, weight, bias, head.targets), TRANSFORMS[transform], KEPT["some"]
        ),
        (head.hidden, head.weight, head.offset),
    )


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_any_of_the_three_may_be_frozen(wanted: tuple[bool, ...]) -> None:
    head = draw()
    for leaf, takes in zip((head.hidden, head.weight, head.offset), wanted, strict=True):
        leaf.requires_grad_(takes)
    if any(wanted):
        assert_exact(head, TRANSFORMS["both"], KEPT["some"])
    else:
        assert not ours(head).requires_grad


@pytest.mark.parametrize("part", PARTS)
def test_chunks_are_even_and_within_their_memory(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PARTS[part])
    head = draw()
    products = HeadProducts(head.weight.detach(), None, TRANSFORMS["identity"])
    chunks = list(products.chunks(TOKENS))
    assert [x for chunk in chunks for x in range(chunk.start, chunk.stop)] == list(range(TOKENS))
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * ROW_BYTES <= PARTS[part]
    assert list(products.chunks(0)) == []


def test_a_vocabulary_larger_than_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", 1)
    assert_exact(draw(), TRANSFORMS["both"], 0)


def test_no_tokens() -> None:
    head = draw(tokens=0)
    values = ours(head)
    assert values.shape == (0,)
    assert all(not g.any() for g in torch.autograd.grad(values.sum(), head.leaves()))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frozen", [False, True])
def test_huge_logits(dtype: torch.dtype, transform: str, kept: str, frozen: bool) -> None:
    """Of 1e4, where exp alone overflows, where softmax is 0 or 1, and where a cap is saturated."""
    head = draw(dtype=dtype, size=1e4, frozen=frozen)
    values = ours(head, TRANSFORMS[transform], KEPT[kept])
    if TRANSFORMS[transform].cap is None:
        assert values.min() < -1e3
    for gradient in torch.autograd.grad(values.sum(), head.leaves(), retain_graph=True):
        assert gradient.isfinite().all()
    rounding = 1e-4 if dtype == torch.float32 else 1e-10
    assert_exact(head, TRANSFORMS[transform], KEPT[kept], rtol=rounding, atol=10 * rounding)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_token_that_is_certain_and_one_that_is_impossible(frozen: bool) -> None:
    """Saturated softmax: log-prob 0 with gradient 0, and -2000 with the gradient of the logits' difference."""
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[1000.0], [-1000.0], [0.0]], requires_grad=not frozen)
    values = token_logprobs(hidden, weight, None, torch.tensor([0, 1]))
    assert values.tolist() == [0.0, -2000.0]
    (gradient,) = torch.autograd.grad(values.sum(), hidden)
    assert gradient.tolist() == [[0.0], [-2000.0]]


def test_backward_twice_gives_the_same_though_the_cache_is_consumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PARTS["uneven"])
    for head, kept in itertools.product((draw(), draw(frozen=True)), KEPT.values()):
        value = (ours(head, TRANSFORMS["both"], kept) * FACTORS).sum()
        first = torch.autograd.grad(value, head.leaves(), retain_graph=True)
        second = torch.autograd.grad(value, head.leaves())
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_was_changed_in_place_is_noticed() -> None:
    """Weights updated between forward and backward would give the gradient of neither."""
    head = draw()
    value = ours(head).sum()
    with torch.no_grad():
        head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [False, True])
def test_narrow_weights_are_multiplied_in_float32(dtype: torch.dtype, frozen: bool) -> None:
    """Values to float32's rounding, gradients to that of their own dtype."""
    head = draw(dtype=dtype, frozen=frozen, size=4.0)
    values, wanted = ours(head, kept=KEPT["some"]), head.full(TRANSFORMS["identity"])
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), wanted, rtol=1e-6, atol=1e-5)
    mine = torch.autograd.grad((values * FACTORS).sum(), head.leaves())
    theirs = torch.autograd.grad((wanted * FACTORS).sum(), head.leaves())
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == dtype
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(one.double(), other.double(), rtol=rounding, atol=rounding * 0.1)


def test_autocast_multiplies_in_its_dtype_and_adds_in_float32() -> None:
    """Float32 hidden states and weights are rounded as autocast rounds them, and nothing else is."""
    head, rounded = draw(dtype=torch.float32), draw(dtype=torch.float32)
    rounded.hidden, rounded.weight = (x.detach().bfloat16() for x in (head.hidden, head.weight))
    with torch.autocast("cpu", torch.bfloat16):
        values = ours(head)
        assert [x.dtype for x in in_autocast_dtype(head.hidden, head.weight)] == [torch.bfloat16] * 2
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), rounded.full(TRANSFORMS["identity"]), rtol=1e-6, atol=1e-6)
    assert (values - ours(head)).abs().max() > 1e-3
    exact = torch.autograd.grad((ours(head) * FACTORS).sum(), head.leaves())
    for one, other in zip(torch.autograd.grad((values * FACTORS).sum(), head.leaves()), exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kept", KEPT)
def test_backward_under_autocast_is_that_outside(kept: str, frozen: bool) -> None:
    """Some call backward() where they called the forward; nothing more is rounded for it."""
    head = draw(dtype=torch.float32, frozen=frozen)
    with torch.autocast("cpu", torch.bfloat16):
        value = (ours(head, TRANSFORMS["both"], KEPT[kept]) * FACTORS.float()).sum()
        inside = torch.autograd.grad(value, head.leaves(), retain_graph=True)
    for one, other in zip(inside, torch.autograd.grad(value, head.leaves()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_cap_too_high_to_bite_leaves_a_far_off_target_its_gradient(frozen: bool) -> None:
    """A cap of 100 lets logits lie 180 apart: exp of the target's underflows, while its gradient is 1 - p = 1."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[90.0], [-90.0], [10.0]], requires_grad=not frozen)
    cap = LogitTransform(cap=100.0)
    actual = token_logprobs(hidden, weight, None, torch.tensor([1]), transform=cap)
    z = 100 * torch.tanh(hidden.double() @ weight.double().T / 100)
    expected = torch.log_softmax(z, dim=-1)[:, 1]
    leaves = [x for x in (hidden, weight) if x.requires_grad]
    assert expected.item() < -130
    torch.testing.assert_close(actual.double(), expected)
    for ours, theirs in zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
