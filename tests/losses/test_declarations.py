"""What each loss declares is what its gradients say, at the settings of its yaml and on pairs drawn at random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Choices, Range
from caldpo.types import PairLogps
from tests.losses.test_losses import load

YAMLS = {path.stem: OmegaConf.load(path) for path in sorted((conf_dir() / "loss").glob("*.yaml"))}
# settings at which a loss declares something else than at its yaml's
OTHER: list[tuple[str, dict[str, Any]]] = [
    ("ipo", {"length_normalize": False}),
    ("cal_ipo", {"length_normalize": False}),
    *((name, {"targets": "scores"}) for name in ("cal_dpo", "cal_ipo", "cal_slic")),
]
SETTINGS = [*((name, {}) for name in YAMLS), *OTHER]
ROWS = 6  # pairs of a batch
CHOSEN = ("policy_chosen", "reference_chosen", "chosen_tokens", "score_chosen")
REJECTED = ("policy_rejected", "reference_rejected", "rejected_tokens", "score_rejected")
FEW = settings(max_examples=15, deadline=None)  # of ROWS pairs each
every_loss = pytest.mark.parametrize(
    ("name", "keys"), SETTINGS, ids=[" ".join([n, *map(str, k.values())]) for n, k in SETTINGS]
)


def column(generator: torch.Generator, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(ROWS, generator=generator, dtype=torch.float64)


@st.composite
def batches(draw: st.DrawFn) -> PairLogps:
    """Pairs whose log-ratios are of some nats, either way; scores differ. Columns come from a seed, which is faster."""
    seed, nats = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.5, 3.0, 12.0]))
    generator = torch.Generator().manual_seed(seed)
    references = [column(generator, -60, -20) for _ in range(2)]
    policies = [reference + column(generator, -nats, nats) for reference in references]
    tokens = [column(generator, 3, 30).round() for _ in range(2)]
    rejected_scores = column(generator, -3, 3)
    scores = rejected_scores + column(generator, 0.1, 3), rejected_scores
    return PairLogps(*policies, *references, *tokens, *scores)


def slopes(loss: PreferenceLoss, logps: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives of the sum of the losses by the policy's log-probs of chosen and rejected."""
    chosen, rejected = (p.detach().requires_grad_() for p in (logps.policy_chosen, logps.policy_rejected))
    total = loss(replace(logps, policy_chosen=chosen, policy_rejected=rejected)).loss.sum()
    return torch.autograd.grad(total, (chosen, rejected), allow_unused=True, materialize_grads=True)


def taken_from(logps: PairLogps, fields: tuple[str, ...], other: PairLogps) -> PairLogps:
    """The batch with these fields of another one."""
    return replace(logps, **{name: getattr(other, name) for name in fields})


def rows(logps: PairLogps, some: slice | list[int]) -> PairLogps:
    values = {name: getattr(logps, name) for name in PairLogps.__dataclass_fields__}
    return PairLogps(**{name: None if value is None else value[some] for name, value in values.items()})


# One fixed batch, on which every loss does everything that it ever does: for the statement that something is read
FIXED = PairLogps(
    *(torch.tensor(values, dtype=torch.float64) for values in (
        [-30.0, -42.0, -21.5, -55.0, -33.25, -47.0], [-36.0, -38.0, -28.0, -49.0, -33.0, -52.0],
        [-32.0, -38.5, -22.0, -50.0, -36.0, -47.5], [-34.0, -40.5, -25.0, -54.0, -31.0, -49.0],
        [9, 14, 6, 21, 12, 17], [11, 10, 8, 16, 13, 22],
        [0.9, 2.5, 1.0, -0.5, 3.0, 0.25], [0.1, 1.0, -1.5, -1.0, 2.5, -0.75],
    ))
)  # fmt: skip
SHIFTED = replace(
    FIXED, **{name: getattr(FIXED, name) * 1.25 + 1 for name in (*CHOSEN, *REJECTED) if "reference" not in name}
)
OTHER_REFERENCE = replace(
    FIXED, reference_chosen=FIXED.reference_chosen - 1.5, reference_rejected=FIXED.reference_rejected + 2.25
)


@every_loss
def test_needs_rejected(name: str, keys: dict[str, Any]) -> None:
    """Without the need: no slope, and the loss does not change with anything of the rejected."""
    loss = load(name, **keys)
    if loss.needs_rejected:
        assert slopes(loss, FIXED)[1].any()
        return
    assert not slopes(loss, FIXED)[1].any()
    torch.testing.assert_close(loss(taken_from(FIXED, REJECTED, SHIFTED)).loss, loss(FIXED).loss, rtol=0, atol=0)


@every_loss
def test_needs_reference(name: str, keys: dict[str, Any]) -> None:
    loss = load(name, **keys)
    same = torch.equal(loss(OTHER_REFERENCE).loss, loss(FIXED).loss)
    assert same == (not loss.needs_reference)
    if not loss.needs_reference:
        without = replace(FIXED, reference_chosen=None, reference_rejected=None)
        torch.testing.assert_close(loss(without).loss, loss(FIXED).loss, rtol=0, atol=0)


@every_loss
def test_needs_scores(name: str, keys: dict[str, Any]) -> None:
    loss = load(name, **keys)
    other = replace(FIXED, score_chosen=FIXED.score_chosen + 0.75, score_rejected=FIXED.score_rejected - 0.5)
    assert torch.equal(loss(other).loss, loss(FIXED).loss) == (not loss.needs_scores)
    without = replace(FIXED, score_chosen=None, score_rejected=None)
    if loss.needs_scores:
        with pytest.raises(Exception, match="score"):
            loss(without)
    else:
        torch.testing.assert_close(loss(without).loss, loss(FIXED).loss, rtol=0, atol=0)


@every_loss
@FEW
@given(batch=batches(), other=batches())
def test_a_pointwise_loss_pushes_each_response_by_itself(
    name: str, keys: dict[str, Any], batch: PairLogps, other: PairLogps
) -> None:
    """A response's slope does not change with anything of the other: d2 loss / d chosen d rejected = 0."""
    loss = load(name, **keys)
    if loss.pairwise or loss.depends_on_batch:
        return
    chosen, rejected = slopes(loss, batch)
    torch.testing.assert_close(slopes(loss, taken_from(batch, REJECTED, other))[0], chosen, rtol=0, atol=0)
    torch.testing.assert_close(slopes(loss, taken_from(batch, CHOSEN, other))[1], rejected, rtol=0, atol=0)


@every_loss
def test_a_pairwise_loss_compares(name: str, keys: dict[str, Any]) -> None:
    """A response's slope changes with the other response, whether smoothly or at a hinge."""
    loss = load(name, **keys)
    changed = [
        not torch.equal(slopes(loss, taken_from(FIXED, fields, SHIFTED))[i], slopes(loss, FIXED)[i])
        for i, fields in enumerate((REJECTED, CHOSEN))
    ]
    if not loss.depends_on_batch:
        assert any(changed) == loss.pairwise


@every_loss
@FEW
@given(batch=batches(), factor=st.sampled_from([2.0, 4.0]))
def test_length_normalised(name: str, keys: dict[str, Any], batch: PairLogps, factor: float) -> None:
    """Responses some times as long, with that many times the nats, have the same contrast: it reads means alone."""
    loss = load(name, **keys)
    if not loss.needs_rejected or not loss.length_normalised:
        return
    torch.testing.assert_close(contrast(loss, longer(batch, factor)), contrast(loss, batch), rtol=1e-9, atol=1e-9)


@every_loss
def test_not_length_normalised(name: str, keys: dict[str, Any]) -> None:
    loss = load(name, **keys)
    if loss.needs_rejected and not loss.length_normalised:
        assert not torch.allclose(contrast(loss, longer(FIXED, 2.0)), contrast(loss, FIXED))


def longer(batch: PairLogps, factor: float) -> PairLogps:
    fields = [name for name in (*CHOSEN, *REJECTED) if not name.startswith("score")]
    return replace(batch, **{name: factor * getattr(batch, name) for name in fields})


def contrast(loss: PreferenceLoss, batch: PairLogps) -> torch.Tensor:
    """The loss less its terms on single responses that any loss may have."""
    output = loss(batch)
    return output.loss - sum(output.terms.get(name, torch.zeros(())) for name in ("nll", "calibration"))


@every_loss
@FEW
@given(batch=batches(), order=st.permutations(range(ROWS)))
def test_depends_on_batch(name: str, keys: dict[str, Any], batch: PairLogps, order: list[int]) -> None:
    """Unless declared, a pair's loss in a batch is its loss alone, and the order does not matter."""
    loss = load(name, **keys)
    if loss.depends_on_batch:
        return
    whole = loss(batch).loss
    torch.testing.assert_close(loss(rows(batch, order)).loss, whole[order], rtol=1e-14, atol=0)
    for i in range(ROWS):
        torch.testing.assert_close(loss(rows(batch, [i])).loss, whole[[i]], rtol=1e-14, atol=0)


@every_loss
@FEW
@given(batch=batches(), chosen=st.lists(st.sampled_from([0.0, 1.0]), min_size=ROWS, max_size=ROWS))
def test_takes_unpaired(name: str, keys: dict[str, Any], batch: PairLogps, chosen: list[float]) -> None:
    """A row with one response has that response's share of the loss, and the two shares add up to the pair's."""
    loss = load(name, **keys)
    if not loss.takes_unpaired or loss.depends_on_batch:
        return
    kept = torch.tensor(chosen, dtype=torch.float64)
    one = replace(batch, chosen_present=kept, rejected_present=1 - kept)
    rest = replace(batch, chosen_present=1 - kept, rejected_present=kept)
    torch.testing.assert_close(loss(one).loss + loss(rest).loss, loss(batch).loss, rtol=1e-12, atol=1e-12)
    for slope, absent in zip(slopes(loss, one), (1 - kept, kept), strict=True):
        assert not slope[absent > 0].any()


@pytest.mark.parametrize("name", YAMLS)
def test_only_pointwise_losses_take_unpaired_rows(name: str) -> None:
    loss = load(name)
    assert not (loss.takes_unpaired and loss.pairwise)


@pytest.mark.parametrize("name", YAMLS)
def test_search_space(name: str) -> None:
    """Its keys are the yaml's, each with a source, and the yaml's value lies within."""
    for key, values in load(name).search_space.items():
        assert key in YAMLS[name], f"loss.{key} is searched, and conf/loss/{name}.yaml does not have it"
        assert len(values.source) > 10
        default = YAMLS[name][key]
        match values:
            case Range(low=low, high=high):
                assert low <= default <= high
                for end in (low, high):
                    load(name, **{key: float(end)})
            case Choices(values=choices):
                assert default in choices
                for choice in choices:
                    load(name, **{key: choice})


@pytest.mark.parametrize("name", YAMLS)
def test_a_loss_with_a_scale_searches_it(name: str) -> None:
    assert "beta" not in YAMLS[name] or "beta" in load(name).search_space
