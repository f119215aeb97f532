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
    ModelCost,
    UnknownFlopsError,
    Workload,
    backward_flops,
    batch_workload,
    forward_flops,
    gpu_hours,
    logits_recomputed,
    minimal_workload,
    recompute_flops,
    run_flops,
)
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.packed_attention import use_packed_attention
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_pairs

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
    result = batch_workload(LENGTHS, layout)
    squares = ((LENGTHS[:, :1] + LENGTHS[:, 1:]) ** 2).sum()
    return result if layout == "padded" else Workload(result.positions, result.response_tokens, int(squares))


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
    plain, again = (counted(model, "padded", cache_mib)[1] for cache_mib in (64, 0))
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
    result = run_flops(
        cost,
        Workload(100, 50, 0, logits_recomputed=5),
        evaluated=Workload(20, 10, 0),
        evaluations=3,
        reference=cost,
        reference_work=Workload(100, 50, 0),
    )
    assert result == {
        "forward": 2 * 10 * 100 + 2 * 4 * 50,
        "backward": 4 * 10 * 100 + 4 * 4 * 50,
        "recompute": 2 * 8 * 100 + 2 * 4 * 5,
        "reference": 2 * 10 * 100 + 2 * 4 * 50,
        "evaluation": 3 * (2 * 10 * 20 + 2 * 4 * 10),
        "total": (2400 + 4800 + 1640) + 2400 + 1440,
    }


@pytest.mark.parametrize(("steps", "every", "count"), [(100, 50, 3), (101, 50, 4), (10, 50, 2), (10, None, 2)])
def test_evaluations_are_before_the_first_and_after_the_last_step(steps: int, every: int | None, count: int) -> None:
    assert count_evaluations(steps, every) == count


def test_hours_are_operations_at_a_share_of_a_peak() -> None:
    """1 PFLOP/s at a half: 1.8e18 operations in an hour."""
    hours = {"device": 2.0, "wall": 0.25, "tflops": 1000, "utilisation": 0.5}
    assert gpu_hours(3.6e18, tflops=1000, utilisation=0.5, devices=8) == hours


class TestMinimalWorkload:
    """What a pair's forward and backward pass cost at least."""

    COST = ModelCost(body=1000, trained=1000, head=70, head_trained=True, attention=12)

    @staticmethod
    def step(cost: ModelCost, *lengths: int) -> float:
        minimal = minimal_workload(np.array([lengths]))
        return forward_flops(cost, minimal) + backward_flops(cost, minimal)

    @pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
    def test_one_sequence_costs_what_pytorch_counts(self, architecture: str) -> None:
        """Prompt and response as one row, the head at the response's positions, forward and backward.

        PyTorch counts attention over the whole square; the half above the diagonal is added.
        """
        prompt, response = 11, 6
        model = model_of(architecture)
        tokens = prompt + response - 1  # the last token of the response predicts nothing
        ids = torch.arange(tokens)[None] + 3
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            (model.get_output_embeddings()(hidden[0, -response:])).sum().backward()
        cost = ModelCost.of(model)
        # of a pair whose rejected response is one token, that token adds the head at one position and nothing else
        flops = self.step(cost, prompt, response, 1) - 3 * 2 * cost.head
        above_diagonal = 3 * 4 * cost.attention * (tokens * tokens - tokens * (tokens + 1) // 2)
        assert flops + above_diagonal == counter.get_total_flops()

    def test_a_shared_prompt_is_attended_to_by_both_responses_and_computed_once(self) -> None:
        """Positions and attended pairs from the block mask of a packed pair, written out position by position."""
        prompt, chosen, rejected = 5, 4, 3
        kinds = ["p"] * prompt + ["c"] * (chosen - 1) + ["r"] * (rejected - 1)
        attended = sum(
            1 for i, mine in enumerate(kinds) for j, other in enumerate(kinds) if j <= i and (other in ("p", mine))
        )
        expected = 3 * (2 * 1000 * len(kinds) + 4 * 12 * attended + 2 * 70 * (chosen + rejected))
        assert self.step(self.COST, prompt, chosen, rejected) == expected

    def test_pairs_add_up(self) -> None:
        assert minimal_workload(np.array([[5, 4, 3], [2, 1, 7]])) == (
            minimal_workload(np.array([[5, 4, 3]])) + minimal_workload(np.array([[2, 1, 7]]))
        )

    def test_frozen_weights_need_no_gradient_of_their_own(self) -> None:
        frozen = ModelCost(body=1000, trained=0, head=70, head_trained=False, attention=12)
        positions, responses = 5 + 3 + 2, 4 + 3
        assert self.step(self.COST, 5, 4, 3) - self.step(frozen, 5, 4, 3) == 2 * (1000 * positions + 70 * responses)
        adapted = ModelCost(body=1008, trained=8, head=70, head_trained=False, attention=12)
        assert self.step(adapted, 5, 4, 3) - self.step(frozen, 5, 4, 3) == 3 * 2 * 8 * positions
