"""Operations by the formulas, against PyTorch's own counter on the engine that trains, and against plain sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from caldpo.data.collate import Layout, collate
from caldpo.estimation.estimate_run import count_evaluations
from caldpo.estimation.run_flops import (
    GpuHours,
    ModelCost,
    RunFlops,
    UnknownFlopsError,
    Workload,
    backward_flops,
    batch_workload,
    forward_flops,
    logits_recomputed,
    recompute_flops,
)
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.packed_attention import use_packed_attention
from tests.messages import refused
from tests.tiny import tiny_pairs

PAIRS = tiny_pairs(7)
LENGTHS = np.array([[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in PAIRS])


def model_of(architecture: str, *, checkpointing: bool = False) -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 56}
    if architecture == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 56}
        sizes |= {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}  # as training switches it off
    if architecture == "mistral":
        sizes |= {"num_key_value_heads": 2}
    config = AutoConfig.for_model(architecture, vocab_size=44, bos_token_id=0, eos_token_id=1, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def counted(model: PreTrainedModel, layout: Layout, logits_cache_mib: int = 64) -> tuple[int, int]:
    """PyTorch's count of a forward pass without gradients, and of a training step."""
    if layout == "packed":
        use_packed_attention(model)
    batch = collate(PAIRS, 0, layout=layout)
    with sdpa_kernel(SDPBackend.MATH):  # whose products the counter sees
        with FlopCounterMode(display=False) as alone, torch.no_grad():
            LogprobEngine(model)(batch)
        with FlopCounterMode(display=False) as trained:
            engine = LogprobEngine(model, logits_cache_mib)
            loss, _, _ = engine.loss(batch, lambda chosen, rejected, _: (chosen - rejected).sum())
            loss.backward()
    return alone.get_total_flops(), trained.get_total_flops()


def work(layout: Layout) -> Workload:
    """As PyTorch counts it: whole squares also where a causal kernel skips the half above the diagonal."""
    found = batch_workload(LENGTHS, layout)
    squares = ((LENGTHS[:, :1] + LENGTHS[:, 1:]) ** 2).sum()
    return found if layout == "padded" else Workload(found.positions, found.response_tokens, int(squares))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "gpt_neox"])
def test_a_step_costs_what_pytorch_counts(architecture: str, layout: Layout) -> None:
    model = model_of(architecture)
    cost, done = ModelCost.of(model), work(layout)
    forward, step = counted(model, layout)
    assert forward_flops(cost, done) == pytest.approx(forward, rel=0.03)
    assert forward_flops(cost, done) + backward_flops(cost, done) == pytest.approx(step, rel=0.03)
    assert recompute_flops(cost, done) == 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_checkpointing_computes_the_layers_again(architecture: str) -> None:
    plain, again = (counted(model_of(architecture, checkpointing=on), "packed")[1] for on in (False, True))
    cost = ModelCost.of(model_of(architecture, checkpointing=True))
    assert cost.attention_recomputed == cost.attention
    assert cost.body * 0.6 < cost.recomputed < cost.body
    assert recompute_flops(cost, work("packed")) == pytest.approx(again - plain, rel=0.03)


def test_logits_that_are_not_kept_are_computed_again() -> None:
    """Without any room all of them are; each pair has its own."""
    model = model_of("llama")
    plain, again = (counted(model, "padded", kept)[1] for kept in (64, 0))
    share = logits_recomputed(LENGTHS, 44, logits_cache_mib=0)
    assert share == 1
    tokens = work("padded").response_tokens
    assert (
        recompute_flops(ModelCost.of(model), Workload(0, tokens, 0, logits_recomputed=share * tokens)) == again - plain
    )
    # 1 MiB holds 262,144 logits: 100 tokens of 2,621 words. A pair of 60 and 90 has 50 beyond that, one of 10 none.
    lengths = np.array([[5, 60, 90], [5, 4, 6]])
    assert logits_recomputed(lengths, 2621, logits_cache_mib=1) == pytest.approx(50 / 160)


def test_adapters_are_trained_and_the_rest_is_gone_through() -> None:
    peft = pytest.importorskip("peft")
    model = model_of("llama")
    base = ModelCost.of(model)
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    cost = ModelCost.of(adapted)
    assert cost.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert cost.body == base.body + cost.trained
    assert not cost.head_trained
    assert cost.without_adapters().body == base.body
    assert base.without_adapters() == base
    _, step = counted(adapted, "padded")
    done = work("padded")
    # the first layer's own inputs need no gradient, which the formula does not know: 1 of 3 layers here, 1 of 32 there
    assert forward_flops(cost, done) + backward_flops(cost, done) == pytest.approx(step, rel=0.1)


def test_what_is_used_by_some_tokens_alone_is_not_guessed() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("mixtral", vocab_size=44, intermediate_size=24, num_local_experts=4, **sizes)
    with torch.device("meta"):
        experts = AutoModelForCausalLM.from_config(config)
    with refused("MixtralExperts", "matrix", kind=UnknownFlopsError):
        ModelCost.of(experts)


def test_packed_pairs_attend_causally_and_padded_rows_to_everything() -> None:
    lengths = np.array([[3, 2, 4], [5, 1, 1]])
    packed, padded = batch_workload(lengths, "packed"), batch_workload(lengths, "padded")
    # every response behind its prompt, as a row of its own below the diagonal: 5, 7, 6 and 6 tokens
    assert packed.attended == sum(i + 1 for row in (5, 7, 6, 6) for i in range(row))
    assert packed.positions == 9 + 7
    assert padded.positions == 4 * 7
    assert padded.attended == 4 * 7 * 7
    assert packed.response_tokens == padded.response_tokens == 8


def test_a_run_adds_up() -> None:
    """By hand: body 10, head 4, no attention; 100 positions and 50 predicted tokens in training."""
    cost = ModelCost(body=10, trained=10, head=4, head_trained=True, attention=0, recomputed=8)
    found = RunFlops.of(
        cost,
        Workload(100, 50, 0, logits_recomputed=5),
        evaluated=Workload(20, 10, 0),
        evaluations=3,
        reference=cost,
        reference_work=Workload(100, 50, 0),
    )
    assert found == RunFlops(
        forward=2 * 10 * 100 + 2 * 4 * 50,
        backward=4 * 10 * 100 + 4 * 4 * 50,
        recompute=2 * 8 * 100 + 2 * 4 * 5,
        reference=2 * 10 * 100 + 2 * 4 * 50,
        evaluation=3 * (2 * 10 * 20 + 2 * 4 * 10),
    )
    assert found.total == found.training + 2400 + 1440


@pytest.mark.parametrize(("steps", "every", "count"), [(100, 50, 3), (101, 50, 4), (10, 50, 2), (10, None, 2)])
def test_evaluations_are_before_the_first_and_after_the_last_step(steps: int, every: int | None, count: int) -> None:
    assert count_evaluations(steps, every) == count


def test_hours_are_operations_at_a_share_of_a_peak() -> None:
    """1 PFLOP/s at a half: 1.8e18 operations in an hour."""
    assert GpuHours.of(3.6e18, tflops=1000, utilisation=0.5, devices=8) == GpuHours(2.0, 0.25, 1000, 0.5)
