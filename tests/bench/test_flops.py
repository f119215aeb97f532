"""Operations counted by the formula, against PyTorch's counter and against a mask written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.bench.step_flops import ModelSize, step_flops

PROMPT, RESPONSE = 11, 6


def small_model(architecture: str, folder: Path) -> tuple[torch.nn.Module, str]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
    if architecture == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_inner": 24}
    if architecture == "mistral":
        sizes |= {"num_key_value_heads": 2}
    config = AutoConfig.for_model(architecture, vocab_size=37, attn_implementation="eager", **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.save_pretrained(folder)
    return model, str(folder)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_one_sequence_costs_what_pytorch_counts(architecture: str, tmp_path: Path) -> None:
    """Prompt and response as one row, the head at the response's positions, forward and backward.

    PyTorch counts attention over the whole square; the half above the diagonal is added.
    """
    model, folder = small_model(architecture, tmp_path)
    tokens = PROMPT + RESPONSE - 1  # the last token of the response predicts nothing
    ids = torch.arange(tokens)[None] + 3
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        (model.get_output_embeddings()(hidden[0, -RESPONSE:])).sum().backward()
    size = ModelSize.of(folder)
    # Of a pair whose rejected response is one token, that token adds the head at one position and nothing else.
    counted = step_flops(size, PROMPT, RESPONSE, 1) - 3 * 2 * size.head
    above_diagonal = 3 * 4 * size.attention * (tokens * tokens - tokens * (tokens + 1) // 2)
    assert counted + above_diagonal == counter.get_total_flops()


def test_a_shared_prompt_is_attended_to_by_both_responses_and_computed_once() -> None:
    """Positions and attended pairs from the block mask of a packed pair, written out position by position."""
    prompt, chosen, rejected = 5, 4, 3
    kinds = ["p"] * prompt + ["c"] * (chosen - 1) + ["r"] * (rejected - 1)
    attended = sum(
        1 for i, mine in enumerate(kinds) for j, other in enumerate(kinds) if j <= i and (other in ("p", mine))
    )
    size = ModelSize(body=1000, head=70, attention=12)
    expected = 3 * (2 * 1000 * len(kinds) + 4 * 12 * attended + 2 * 70 * (chosen + rejected))
    assert step_flops(size, prompt, chosen, rejected) == expected


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    trained, frozen = ModelSize(1000, 70, 12), ModelSize(1000, 70, 12, adapters=0)
    positions, responses = 5 + 3 + 2, 4 + 3
    saved = 2 * (1000 * positions + 70 * responses)
    assert step_flops(trained, 5, 4, 3) - step_flops(frozen, 5, 4, 3) == saved
    with_adapters = ModelSize(1000, 70, 12, adapters=8)
    assert step_flops(with_adapters, 5, 4, 3) - step_flops(frozen, 5, 4, 3) == 3 * 2 * 8 * positions


def test_adapters_lie_on_every_linear_layer_but_the_head(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, folder = small_model("llama", tmp_path)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert ModelSize.of(folder, lora_rank=2).adapters == trained
