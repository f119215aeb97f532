"""Weights of tokens: which they are, and sums of log-probs and gradients with them against plain autograd."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.logprobs import LogprobEngine, lm_head_ops
from caldpo.logprobs.layout import choose_layout
from caldpo.types import Alignment, PairBatch
from tests.helpers.tiny import VOCABULARY, tiny_model
from tests.modifiers.made import modifier, same

# lengths of chosen and rejected: either the longer one, alike, and one token each
LENGTHS = [(3, 7), (6, 2), (4, 4), (1, 1), (1, 9)]
PAIRS = [
    TokenizedPair(
        [5, 6, 7][: 1 + i % 3],
        [4 + (i + j) % 30 for j in range(c)],
        [9 + (i * j) % 30 for j in range(r)],
        None,
        None,
        10 + i,
        "",
    )
    for i, (c, r) in enumerate(LENGTHS)
]


def batch(layout: Literal["padded", "packed"] = "padded") -> PairBatch:
    return collate(PAIRS, 0, layout=layout, split="train")


def by_response(weights: Tensor, of: PairBatch) -> list[tuple[list[float], list[float]]]:
    """Weights of chosen and rejected tokens, pair by pair."""
    parts = [weights[of.response == place].tolist() for place in range(2 * of.pairs)]
    return list(zip(parts[: of.pairs], parts[of.pairs :], strict=True))


def test_places_in_a_response_begin_at_its_start() -> None:
    for (chosen, rejected), (c, r) in zip(by_response(batch().places_in_response(), batch()), LENGTHS, strict=True):
        assert (chosen, rejected) == (list(range(c)), list(range(r)))


def test_ld_dpo_weighs_what_is_beyond_the_shorter_response() -> None:
    found = by_response(modifier("ld_dpo", alpha=0.25).weights(batch(), 0), batch())
    for (c, r), (chosen, rejected) in zip(LENGTHS, found, strict=True):
        shared = min(c, r)
        assert chosen == [1.0] * shared + [0.25] * (c - shared)
        assert rejected == [1.0] * shared + [0.25] * (r - shared)


def test_sampo_keeps_as_many_tokens_as_the_shorter_response_has() -> None:
    found = by_response(modifier("sampo").weights(batch(), 3), batch())
    for (c, r), sides in zip(LENGTHS, found, strict=True):
        assert [sum(side) for side in sides] == [min(c, r)] * 2
        assert {weight for side in sides for weight in side} <= {0.0, 1.0}


def test_sampo_draws_by_seed_step_and_pair_alone() -> None:
    """The same in any batch; another in the next step, with another seed, and of another row."""
    whole, sampo = batch(), modifier("sampo", seed=7)
    drawn = by_response(sampo.weights(whole, 3), whole)
    alone = collate([PAIRS[4], PAIRS[1]], 0, layout="packed")
    assert by_response(modifier("sampo", seed=7).weights(alone, 3), alone) == [drawn[4], drawn[1]]
    steps = [by_response(sampo.weights(whole, step), whole)[4] for step in range(20)]
    assert len({tuple(rejected) for _, rejected in steps}) > 5
    others = [by_response(modifier("sampo", seed=seed).weights(whole, 3), whole)[4] for seed in range(20)]
    assert len({tuple(rejected) for _, rejected in others}) > 5


def test_every_place_is_drawn_as_often() -> None:
    """4,000 draws of one of nine tokens: each 444 times, give or take 20."""
    alone = collate([PAIRS[4]], 0)
    total = sum(modifier("sampo").weights(alone, step)[1:] for step in range(4000))
    assert (total - 4000 / 9).abs().max() < 6 * 20


def test_lengths_are_sums_of_weights() -> None:
    weighed = batch().with_token_weights(modifier("ld_dpo", alpha=0.5).weights(batch(), 0))
    chosen, rejected = weighed.lengths()
    assert chosen.tolist() == [min(c, r) + 0.5 * (c - min(c, r)) for c, r in LENGTHS]
    assert rejected.tolist() == [min(c, r) + 0.5 * (r - min(c, r)) for c, r in LENGTHS]
    assert [lengths.tolist() for lengths in batch().lengths()] == [[c for c, _ in LENGTHS], [r for _, r in LENGTHS]]


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "keys"), [("ld_dpo", {"alpha": 0.3}), ("sampo", {})])
def test_weights_and_lengths_are_exact_in_a_run_of_another_dtype(
    name: str, keys: dict[str, Any], default: torch.dtype
) -> None:
    """Lightning's ``bf16-true`` and ``64-true`` change the default dtype of a training step."""
    of = batch()
    wanted = modifier(name, **keys).weights(of, 1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = of.with_token_weights(modifier(name, **keys).weights(of, 1))
        lengths = found.lengths()
    finally:
        torch.set_default_dtype(before)
    assert found.token_weights is not None
    assert torch.equal(found.token_weights, wanted)
    assert found.token_weights.dtype == torch.float32
    for one, other in zip(lengths, of.with_token_weights(wanted).lengths(), strict=True):
        assert torch.equal(one, other)


def naive(model: Any, weights: Tensor, of: PairBatch) -> Tensor:
    """Weighed sums from the model's own logits, one response at a time."""
    sums = []
    for side in (0, 1):
        for pair, parts in zip(PAIRS, by_response(weights, of), strict=True):
            response, part = (pair.chosen_ids, pair.rejected_ids)[side], parts[side]
            ids = torch.tensor([pair.prompt_ids + response])
            logps = F.log_softmax(model(input_ids=ids).logits[0], dim=-1)
            start = len(pair.prompt_ids) - 1
            picked = [logps[start + place, token] for place, token in enumerate(response)]
            sums.append(sum(weight * value for weight, value in zip(part, picked, strict=True)))
    return torch.stack(sums).view(2, -1)


REFERENCE = torch.linspace(-9, -3, 2 * len(LENGTHS), dtype=torch.float64).view(2, -1)


def dpo(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
    return -F.logsigmoid(0.3 * (chosen - REFERENCE[0, rows] - rejected + REFERENCE[1, rows])).sum()


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("group", [4, 1000], ids=["pair by pair", "at once"])
def test_sums_and_gradients_are_those_of_autograd(
    layout: Literal["padded", "packed"], group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the engine's call, and by its streamed loss."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", group * VOCABULARY * 8)
    model = tiny_model(dtype=torch.float64)
    weights = torch.linspace(0.1, 1.9, len(batch().targets), dtype=torch.float64)
    expected = naive(model, weights, batch())
    expected_loss = dpo(expected[0], expected[1], slice(None))
    gradients = torch.autograd.grad(expected_loss, list(model.parameters()))
    if layout == "packed":
        choose_layout("packed", model, 20)
    weighed = batch(layout).with_token_weights(weights)
    engine = LogprobEngine(model)
    same(torch.stack(engine(weighed)), expected)
    total, chosen, rejected = engine.loss(weighed, dpo)
    same(total, expected_loss)
    same(torch.stack([chosen, rejected]), expected.detach())
    for one, other in zip(torch.autograd.grad(total, list(model.parameters())), gradients, strict=True):
        # packed attention rounds its rotary angles otherwise: with weights of 1 the gradients differ as much
        close = {"rtol": 1e-9, "atol": 1e-12} if layout == "padded" else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(one, other, **close)


def test_weights_of_one_are_the_plain_sums() -> None:
    model = tiny_model()
    plain, engine = batch(), LogprobEngine(model)
    ones = plain.with_token_weights(torch.ones(len(plain.targets)))
    for one, other in zip(engine(ones), engine(plain), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("alignment", ["greedy", "sampled"])
@pytest.mark.parametrize("head", [True, False], ids=["streamed head", "own logits"])
def test_log_probs_of_the_policys_own_tokens(alignment: Alignment, head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the full distribution at each place, one response at a time, in chunks of a few tokens."""
    monkeypatch.setitem(lm_head_ops.CHUNK_BYTES, "cpu", 4 * VOCABULARY * 8)
    model, engine = tiny_model(dtype=torch.float64), LogprobEngine(tiny_model(dtype=torch.float64))
    if not head:
        engine._head_examined = True
    sums = []
    with torch.no_grad():
        for side in (0, 1):
            for pair in PAIRS:
                response = (pair.chosen_ids, pair.rejected_ids)[side]
                p = model(input_ids=torch.tensor([pair.prompt_ids + response])).logits[0].softmax(dim=-1)
                p = p[len(pair.prompt_ids) - 1 : -1]
                sums.append((p.max(dim=1).values if alignment == "greedy" else (p * p).sum(dim=1)).log().sum())
    chosen, rejected, *own = engine.aligned(batch(), alignment)
    torch.testing.assert_close(torch.cat(own), torch.stack(sums), rtol=1e-6, atol=1e-7)
    for one, other in zip((chosen, rejected), engine(batch()), strict=True):
        same(one, other.detach())
