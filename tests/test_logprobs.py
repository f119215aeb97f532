"""The engine against log-probs of one unpadded row at a time, in float64, by a plain softmax."""

from __future__ import annotations

import pytest
import torch

from caldpo.data.pair import TokenizedPair
from caldpo.logprobs import pair_logprobs, response_tokens
from tests.tiny import batch_of, tiny_batch, tiny_model, tiny_pairs

ARCHITECTURES = ["llama", "mistral", "qwen2", "gpt2", "gpt_neox", "gemma2"]


def naive(model: torch.nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Sum of log softmax over the full logits of a single row without padding."""
    logits = model(torch.tensor([prompt + response])).logits[0].double()
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return sum(probabilities[t, token].log() for t, token in zip(at, response, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_one_row_at_a_time(architecture: str) -> None:
    """Padding, the other rows and the other response of the pair change nothing."""
    model, pairs = tiny_model(architecture), tiny_pairs(6)
    chosen, rejected = pair_logprobs(model, batch_of(pairs))
    for i, pair in enumerate(pairs):
        assert chosen[i].item() == pytest.approx(naive(model, pair.prompt_ids, pair.chosen_ids).item(), rel=1e-5)
        assert rejected[i].item() == pytest.approx(naive(model, pair.prompt_ids, pair.rejected_ids).item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradients_equal_one_row_at_a_time(architecture: str) -> None:
    model, pairs = tiny_model(architecture, dtype=torch.float64), tiny_pairs(3)
    chosen, rejected = pair_logprobs(model, batch_of(pairs))
    (2 * chosen.sum() - rejected.sum()).backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for pair in pairs:
        (
            2 * naive(model, pair.prompt_ids, pair.chosen_ids) - naive(model, pair.prompt_ids, pair.rejected_ids)
        ).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-10)


def test_one_token_prompts_and_responses() -> None:
    model = tiny_model()
    pair = TokenizedPair([5], [2], [7], None, None, 0, "")
    chosen, rejected = pair_logprobs(model, batch_of([pair]))
    probabilities = model(torch.tensor([[5]])).logits[0, 0].double().softmax(-1)
    assert chosen.item() == pytest.approx(probabilities[2].log().item(), rel=1e-5)
    assert rejected.item() == pytest.approx(probabilities[7].log().item(), rel=1e-5)


def test_pad_id_inside_a_response_is_a_token_like_any_other() -> None:
    """Some tokenizers pad with EOS: masks decide, never ids."""
    model = tiny_model()
    pair = TokenizedPair([5, 6], [0, 9, 0], [0], None, None, 0, "")
    longer = TokenizedPair([5, 6, 7, 8], [9] * 6, [10], None, None, 1, "")
    chosen, _ = pair_logprobs(model, batch_of([pair, longer]))
    assert chosen[0].item() == pytest.approx(naive(model, [5, 6], [0, 9, 0]).item(), rel=1e-5)


def test_models_without_an_output_head_of_their_own() -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()

        def forward(self, input_ids, attention_mask, use_cache):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    plain, batch = Plain(), tiny_batch()
    torch.testing.assert_close(pair_logprobs(plain, batch), pair_logprobs(plain.inner, batch))


def test_bfloat16_models_accumulate_in_float32() -> None:
    batch = tiny_batch()
    half = pair_logprobs(tiny_model(dtype=torch.bfloat16), batch)[0]
    assert half.dtype == torch.float32
    # the same rounded weights in float32 arithmetic
    reference = tiny_model(dtype=torch.bfloat16).float()
    torch.testing.assert_close(half, pair_logprobs(reference, batch)[0], rtol=3e-2, atol=0.3)


def test_response_lengths() -> None:
    pairs = tiny_pairs(5)
    chosen, rejected = response_tokens(batch_of(pairs))
    assert chosen.tolist() == [len(p.chosen_ids) for p in pairs]
    assert rejected.tolist() == [len(p.rejected_ids) for p in pairs]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_sees_response_positions_alone(architecture: str) -> None:
    model, batch = tiny_model(architecture), tiny_batch()
    seen: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.numel() // output.shape[-1]))
    pair_logprobs(model, batch)
    assert seen == [int(batch.response_mask.sum())]
    assert model(batch.input_ids).logits.ndim == 3  # and afterwards the model is as it was


def test_soft_capped_logits() -> None:
    """What a model does to its logits is part of its log-probs: with a cap as low as 2 it cannot be missed."""
    model, pairs = tiny_model("gemma2"), tiny_pairs(3)
    uncapped = pair_logprobs(model, batch_of(pairs))[0]
    model.config.final_logit_softcapping = 2.0
    capped = pair_logprobs(model, batch_of(pairs))[0]
    assert (capped - uncapped).abs().max() > 0.1
    for i, pair in enumerate(pairs):
        assert capped[i].item() == pytest.approx(naive(model, pair.prompt_ids, pair.chosen_ids).item(), rel=1e-5)
