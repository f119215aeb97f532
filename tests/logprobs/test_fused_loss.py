"""A loss by one pass over the head, group by group of pairs, against autograd on all float64 logits at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caldpo.logprobs import fused_loss, lm_head_ops
from caldpo.logprobs.fused_loss import ResponseTokens, fused_pair_loss
from caldpo.logprobs.lm_head_ops import HeadGradient, LogitTransform
from tests.helpers.messages import refused
from tests.logprobs.heads import KEPT, PARTS, TOKENS, TRANSFORMS, Head, draw

# chosen and rejected tokens of four pairs, in all as many as a drawn head has; the third is longer than most parts
LENGTHS = [(1, 1), (2, 1), (1, 5), (1, 1)]
PER_PAIR = [chosen + rejected for chosen, rejected in LENGTHS]
PAIRS = len(LENGTHS)
REFERENCE = torch.tensor([[-3.0, -2.0, -9.0, -4.0], [-2.5, -6.0, -7.0, -1.0]], dtype=torch.float64)

Loss = Callable[[Tensor, Tensor, slice], Tensor]


def dpo(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
    margin = (chosen - REFERENCE[0, rows]) - (rejected - REFERENCE[1, rows])
    return -F.logsigmoid(0.3 * margin).sum()


def cal_dpo(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
    a, b = chosen - REFERENCE[0, rows], rejected - REFERENCE[1, rows]
    return (-F.logsigmoid(a - b) + (a - 5) ** 2 + (b + 5) ** 2).sum()


def sft(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
    """Does not look at the rejected side at all."""
    return -chosen.sum()


def of_one_pair(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
    """Filler has no loss: the other pairs' gradients are 0."""
    weight = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)[rows]
    return torch.where(weight > 0, (chosen - 2 * rejected) ** 2, 0).sum()


LOSSES: dict[str, Loss] = {"dpo": dpo, "cal_dpo": cal_dpo, "sft": sft, "of one pair": of_one_pair}


def tokens_of(head: Head) -> ResponseTokens:
    owners = [place for i, (c, r) in enumerate(LENGTHS) for place in [i] * c + [PAIRS + i] * r]
    assert len(owners) == TOKENS
    return ResponseTokens(head.targets, torch.tensor(owners), PER_PAIR)


def ours(
    head: Head, loss: Loss, transform: LogitTransform = TRANSFORMS["identity"], kept: int = 0
) -> tuple[Tensor, Tensor]:
    return fused_pair_loss(
        head.hidden, head.weight, head.bias, tokens_of(head), loss, transform=transform, cache_bytes=kept
    )


def full(head: Head, loss: Loss, transform: LogitTransform = TRANSFORMS["identity"]) -> tuple[Tensor, Tensor]:
    values, owners = head.full(transform), tokens_of(head).response
    summed = torch.stack([values[owners == place].sum() for place in range(2 * PAIRS)])
    return loss(summed[:PAIRS], summed[PAIRS:], slice(None)), summed.detach()


def assert_exact(head: Head, loss: Loss, transform: LogitTransform, kept: int) -> None:
    value, summed = ours(head, loss, transform, kept)
    expected, wanted_summed = full(head, loss, transform)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(summed, wanted_summed, rtol=1e-12, atol=1e-12)
    assert not summed.requires_grad
    theirs = torch.autograd.grad(3 * expected, head.leaves())
    for one, other in zip(torch.autograd.grad(3 * value, head.leaves()), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_log_probs_and_gradients(
    loss: str, transform: str, kept: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any grouping: a pair at a time, and one larger than a part; two and one and one; all at once."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PARTS[part])
    for head in (draw(), draw(bias=False), draw(frozen=True)):
        assert_exact(head, LOSSES[loss], TRANSFORMS[transform], KEPT[kept])


@pytest.mark.parametrize(
    ("part", "groups"),
    [
        ("one token", [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)]),
        ("uneven", [slice(0, 2), slice(2, 3), slice(3, 4)]),
        ("all", [slice(0, 4)]),
    ],
)
def test_the_loss_is_asked_group_by_group(part: str, groups: list[slice], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the log-probs of those pairs alone, in order, at once with their chosen and rejected."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PARTS[part])
    head, asked = draw(), []

    def seen(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
        asked.append(rows)
        assert len(chosen) == len(rejected) == rows.stop - rows.start
        return dpo(chosen, rejected, rows)

    ours(head, seen)
    assert asked == groups


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradients_are_the_slopes_of_the_loss(transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences along random directions, so that not even autograd's own formulas are shared."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", PARTS["uneven"])
    head, step = draw(), 1e-6

    def value() -> Tensor:
        return ours(head, cal_dpo, TRANSFORMS[transform], KEPT["some"])[0]

    for leaf, gradient in zip(head.leaves(), torch.autograd.grad(value(), head.leaves()), strict=True):
        for seed in range(3):
            direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(seed), dtype=leaf.dtype)
            start = leaf.detach().clone()
            with torch.no_grad():
                leaf.copy_(start + step * direction)
                up = value().item()
                leaf.copy_(start - step * direction)
                down = value().item()
                leaf.copy_(start)
            slope = (up - down) / (2 * step)
            assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_a_second_backward_is_refused() -> None:
    """Its gradients are handed over, not copied."""
    head = draw()
    value, _ = ours(head, dpo)
    value.backward(retain_graph=True)
    with refused("fused loss", "once", kind=RuntimeError):
        value.backward()


def test_nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    head = draw(frozen=True)
    head.hidden.requires_grad_(False)
    value, summed = ours(head, dpo)
    expected, wanted_summed = full(head, dpo)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(summed, wanted_summed, rtol=1e-12, atol=0)
    made: list[int] = []

    class Counted(HeadGradient):
        def add(self, part: slice, hidden: Tensor, dz: Tensor) -> None:
            super().add(part, hidden, dz)
            made.extend(x.numel() for x in (self.hidden, self.matrix, self.bias) if x is not None)

    monkeypatch.setattr(fused_loss, "HeadGradient", Counted)
    with torch.no_grad():
        torch.testing.assert_close(ours(draw(), dpo)[0], expected, rtol=1e-12, atol=0)
    assert made == []
    ours(draw(), dpo)
    assert made != []


def test_a_loss_that_looks_at_neither_side_has_gradients_of_zero() -> None:
    head = draw()
    value, _ = ours(head, lambda chosen, rejected, rows: (0 * chosen).sum())
    assert value.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(value, head.leaves()))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_huge_and_tiny_logits(size: float, kept: str) -> None:
    for dtype, rounding in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        head = draw(dtype=dtype, size=size)
        for name, transform in TRANSFORMS.items():
            value, expected = ours(head, dpo, transform, KEPT[kept])[0], full(head, dpo, transform)[0]
            torch.testing.assert_close(value.double(), expected, rtol=rounding, atol=rounding, msg=name)
            mine, theirs = (torch.autograd.grad(x, head.leaves()) for x in (value, expected))
            for one, other in zip(mine, theirs, strict=True):
                assert one.isfinite().all()
                largest = float(other.abs().max().clamp_min(1))
                torch.testing.assert_close(one.double(), other.double(), rtol=rounding, atol=rounding * largest)


def test_the_scale_of_float16_training_comes_in_time() -> None:
    """A scaled loss: hidden gradients of 1e-7 would be 0 in float16 before 65536 times them is taken."""
    head = draw(dtype=torch.float16, frozen=True)
    exact = draw(frozen=True)
    exact.hidden, exact.weight, exact.bias = (x.detach().double() for x in (head.hidden, head.weight, head.offset))
    exact.hidden.requires_grad_()

    def faint(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
        return (chosen - rejected).sum() * 1e-8

    (actual,) = torch.autograd.grad(65536 * ours(head, faint)[0], head.hidden)
    (expected,) = torch.autograd.grad(65536 * full(exact, faint)[0], exact.hidden)
    assert actual.dtype == torch.float16
    assert actual.abs().min() > 0
    torch.testing.assert_close(actual.double(), expected, rtol=2e-3, atol=1e-7)
    (lost,) = torch.autograd.grad(ours(head, faint)[0], head.hidden)
    assert not lost.any()


def test_a_loss_of_something_else_is_refused() -> None:
    """Detached log-probs, or none at all, give nothing to train on."""
    head = draw()
    for loss in (lambda c, r, rows: -c.detach().sum(), lambda c, r, rows: torch.ones(())):
        with refused("log-probs", key="loss", remedy=("policy_chosen", "policy_rejected")):
            ours(head, loss)
