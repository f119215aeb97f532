"""The arithmetic of a device that multiplies half-precision matrices into a float32 result, as GPUs do.

A CPU has no such product. It is stood in for by one that refuses, as theirs does, operands of two dtypes, so that all
that surrounds it is what a GPU runs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caldpo.logprobs import lm_head_ops
from caldpo.logprobs.chunked import token_logprobs
from caldpo.logprobs.lm_head_ops import HeadProducts
from tests.logprobs.heads import KEPT, PARTS, TOKENS, TRANSFORMS, Head, draw
from tests.logprobs.test_fused_loss import cal_dpo, full, ours

NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
FROZEN = pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])


@pytest.fixture(autouse=True)
def wide_results(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(self: HeadProducts, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        assert self.mixed
        assert a.dtype == b.dtype == self.dtype
        return a.float() @ b.float()

    monkeypatch.setitem(lm_head_ops.WIDE_RESULTS, "cpu", True)
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PARTS["uneven"])
    monkeypatch.setattr(HeadProducts, "product", product)


def exact_copy(head: Head) -> Head:
    """The same numbers in float64."""

    def wide(x: Tensor) -> Tensor:
        return x.detach().double().requires_grad_(x.requires_grad)

    return Head(wide(head.hidden), wide(head.weight), wide(head.offset), head.targets)


def assert_near(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """To two roundings of the narrow dtype, relative to the largest entry."""
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() <= 2 * torch.finfo(dtype).eps * other.abs().max()


@NARROW
@FROZEN
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_log_probs(dtype: torch.dtype, frozen: bool, kept: str, transform: str) -> None:
    head = draw(dtype=dtype, frozen=frozen)
    exact, factors = exact_copy(head), torch.linspace(-1, 2, TOKENS)
    values = token_logprobs(
        head.hidden, head.weight, head.bias, head.targets, transform=TRANSFORMS[transform], cache_bytes=KEPT[kept]
    )
    expected = exact.full(TRANSFORMS[transform])
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-6)
    theirs = torch.autograd.grad((expected * factors).sum(), exact.leaves())
    assert_near(torch.autograd.grad((values * factors).sum(), head.leaves()), theirs, dtype)


@NARROW
@FROZEN
@pytest.mark.parametrize("kept", KEPT)
def test_fused_losses(dtype: torch.dtype, frozen: bool, kept: str) -> None:
    head = draw(dtype=dtype, frozen=frozen)
    exact = exact_copy(head)
    value, expected = ours(head, cal_dpo, kept=KEPT[kept])[0], full(exact, cal_dpo)[0]
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = torch.autograd.grad(expected, exact.leaves())
    assert_near(torch.autograd.grad(value, head.leaves()), theirs, dtype)


@NARROW
@FROZEN
def test_the_scale_of_a_float16_loss_comes_in_time(dtype: torch.dtype, frozen: bool) -> None:
    """Gradients of 1e-9 by the logits, which float16 has not, times 65536 later on."""
    head = draw(dtype=dtype, frozen=frozen)
    exact = exact_copy(head)

    def faint(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
        return (chosen - rejected).sum() * 1e-8

    actual = torch.autograd.grad(65536 * ours(head, faint)[0], head.leaves())
    for one, other in zip(actual, torch.autograd.grad(65536 * full(exact, faint)[0], exact.leaves()), strict=True):
        # what is left is float16's own coarse grid below 6e-5
        assert (one.double() - other).abs().max() <= 2 * torch.finfo(dtype).eps * other.abs().max() + 6e-8


def test_no_gradient_at_all_is_zero_and_no_fraction() -> None:
    """Filler alone: nothing is divided by a largest entry of 0."""
    head = draw(dtype=torch.float16)
    value, _ = ours(head, lambda chosen, rejected, rows: (0 * chosen).sum())
    assert all(not gradient.any() for gradient in torch.autograd.grad(value, head.leaves()))
