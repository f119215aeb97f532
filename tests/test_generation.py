"""Sampling: reproducible, independent of the batch, and aware of where a response ends."""

from __future__ import annotations

import pytest
import torch

from caldpo.generation import sample_responses
from tests.tiny import tiny_model, tiny_tokenizer

MODEL = tiny_model()
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


def sample(prompts: list[list[int]] = PROMPTS, seed: int = 0, temperature: float = 1.0, **keys: int) -> list[list[int]]:
    settings = {"max_new_tokens": 12, **keys}
    return sample_responses(MODEL, tiny_tokenizer(), prompts, temperature=temperature, seed=seed, **settings)


def test_seed_decides_and_global_state_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = sample(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert sample(seed=3) == first
    assert sample(seed=4) != first


def test_likeliest_tokens_do_not_depend_on_the_batch() -> None:
    """Left padding and other prompts change nothing."""
    together = sample(temperature=0.0)
    alone = [sample([p], temperature=0.0)[0] for p in PROMPTS]
    assert together == alone == sample(temperature=0.0, batch_size=2)


def test_likeliest_tokens_by_hand() -> None:
    model, ids = tiny_model(), list(PROMPTS[0])
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    assert sample([PROMPTS[0]], temperature=0.0)[0] == ids[3:]


def test_a_response_ends_with_its_first_eos() -> None:
    responses = sample([[i] for i in range(4, 44)], max_new_tokens=40)
    assert any(r[-1] == 2 for r in responses)
    for response in responses:
        assert 2 not in response[:-1]
        assert response[-1] == 2 or len(response) == 40


def test_sampling_follows_the_model() -> None:
    """First tokens over many samples have the model's own frequencies (no top-k or top-p is cut off)."""
    model = tiny_model()
    expected = model(torch.tensor([[5]])).logits[0, -1].double().softmax(-1)
    drawn = [r[0] for r in sample([[5]] * 4000, max_new_tokens=1, batch_size=4000)]
    found = torch.bincount(torch.tensor(drawn), minlength=44) / 4000
    assert (found - expected).abs().max() < 4.5 * (expected * (1 - expected) / 4000).sqrt().max()


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_model_is_restored(training: bool) -> None:
    model = tiny_model().train(training)
    sample_responses(model, tiny_tokenizer(), [[5]], max_new_tokens=2, temperature=1.0, seed=0)
    assert model.training is training
