"""The table as a causal language model: log-probs of a table lookup, gradients on the table alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.environments.tabular_environment import TabularEnvironment
from caldpo.models.tabular_model import TabularLM, TabularModel
from caldpo.types import PairBatch
from tests.helpers.logprobs import pair_logprobs
from tests.helpers.messages import names
from tests.helpers.tiny import sample_responses

SOURCE = TabularModel(prompts=3, responses=5, environment_seed=1, reference_spread=1.0)
TOKENIZER = SOURCE.load_tokenizer()


def policy() -> TabularLM:
    model = SOURCE.load_policy()
    assert isinstance(model, TabularLM)
    return model


def batch() -> PairBatch:
    """Every prompt with every pair of neighbouring responses."""
    pairs: list[TokenizedPair] = []
    for x in range(3):
        for y in range(4):
            prompt = TOKENIZER(f"x{x}")["input_ids"]
            chosen, rejected = (
                [*TOKENIZER(f" y{j}", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
                for j in (y, y + 1)
            )
            pairs.append(TokenizedPair(prompt, chosen, rejected, None, None, len(pairs), ""))
    return collate(pairs, pad_id=TOKENIZER.pad_token_id)


def test_tokens() -> None:
    ids = TOKENIZER("x2 y4")["input_ids"]
    assert ids == [TOKENIZER.bos_token_id, 4 + 2, 4 + 3 + 4]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "x2 y4"
    assert TOKENIZER.unk_token_id in TOKENIZER("x3 y5")["input_ids"]


def test_the_policy_starts_as_the_reference() -> None:
    expected = TabularEnvironment(3, 5, 1, 1.0, 9.0).reference()
    assert torch.allclose(policy().table.log_softmax(dim=1).double(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_prob_of_a_response_is_its_tables_entry_and_eos_adds_nothing(dtype: torch.dtype) -> None:
    model = policy()
    model.lm_head.to(dtype)
    chosen, rejected = pair_logprobs(model, batch())
    table = model.table.detach()
    table = (table if dtype == torch.float64 else table.float()).log_softmax(dim=1)
    assert torch.allclose(chosen.reshape(3, 4), table[:, :4], atol=1e-6)
    assert torch.allclose(rejected.reshape(3, 4), table[:, 1:], atol=1e-6)
    ids = torch.tensor([TOKENIZER("x0 y3")["input_ids"]])
    last = model(ids, logits_to_keep=1).logits[0, -1].float().log_softmax(dim=0)
    assert last[TOKENIZER.eos_token_id] == 0.0


def test_logits_to_keep() -> None:
    model, ids = policy(), torch.tensor([TOKENIZER("x0 y3")["input_ids"], TOKENIZER("x2 y1")["input_ids"]])
    everything = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert everything.shape == (2, 3, len(TOKENIZER))
    assert torch.equal(model(ids, logits_to_keep=2).logits, everything[:, -2:])
    assert torch.equal(model(ids, logits_to_keep=torch.tensor([0, 2])).logits, everything[:, [0, 2]])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_training_moves_the_table_alone(weight_decay: float) -> None:
    model, data = policy(), batch()
    before = model.lm_head.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=weight_decay)
    for _ in range(50):
        chosen, rejected = pair_logprobs(model, data)
        optimizer.zero_grad()
        torch.nn.functional.softplus(rejected - chosen).mean().backward()
        gradient = model.lm_head.weight.grad
        assert gradient is not None
        outside = torch.ones_like(gradient, dtype=torch.bool)
        outside[7:, 4:7] = False
        assert (gradient[outside] == 0).all()
        assert (gradient[~outside] != 0).all()
        optimizer.step()
    if weight_decay == 0:
        assert torch.equal(model.lm_head.weight.detach()[outside], before[outside])
    # impossible is still impossible, certain still certain
    logits = model(torch.tensor([TOKENIZER("x1 y0")["input_ids"]])).logits[0].softmax(dim=1)
    assert logits[1, 7:].sum().item() == pytest.approx(1.0)
    assert logits[1, :7].sum().item() == 0.0
    assert logits[2, TOKENIZER.eos_token_id].item() == 1.0


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_generation_samples_the_table(temperature: float) -> None:
    model = policy()
    prompts = [TOKENIZER("x1")["input_ids"]] * 1000
    responses = sample_responses(model, TOKENIZER, prompts, max_new_tokens=4, temperature=temperature, seed=0)
    assert all(len(r) == 2 and r[-1] == TOKENIZER.eos_token_id for r in responses)
    counts = Counter(r[0] - 7 for r in responses)
    probabilities = model.table[1].softmax(dim=0).double()
    if temperature == 0:
        assert dict(counts) == {int(probabilities.argmax()): 1000}
    else:
        observed = [counts[j] for j in range(5)]
        expected = (probabilities / probabilities.sum() * 1000).tolist()
        assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_a_saved_policy_loads_like_any_other(tmp_path: Path) -> None:
    model = policy()
    with torch.no_grad():
        model.table.add_(torch.arange(5.0))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, TabularLM)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.table, model.table)


def test_each_load_is_a_policy_of_its_own() -> None:
    first, second = policy(), policy()
    with torch.no_grad():
        first.table.zero_()
    assert second.table.abs().sum() > 0
    names(SOURCE.identity(), "3 prompts", "5 responses", "seed 1", "spread 1")
