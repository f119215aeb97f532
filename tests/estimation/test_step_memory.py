"""A step on fake tensors needs what the real step needs, and what autograd saves."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.estimation.fake_model import fake_batch, fake_tensors, to_dtype
from caldpo.estimation.step_memory import (
    WEIGHT_DTYPES,
    StepMemory,
    autocast,
    bytes_of,
    evaluation_step,
    training_step,
)
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.models.model_source import prepare_for_training
from caldpo.models.qlora import QLora, QuantizedSource

SIZES = {
    "llama": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
    },
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4},
}
HIDDEN, VOCABULARY = 64, 500
LENGTHS = [(60, 40, 80), (30, 90, 50), (100, 20, 20)]  # prompt, chosen, rejected
BATCH = {
    layout: collate(
        [TokenizedPair([5] * p, [6] * c, [7] * r, None, None, 0, "") for p, c, r in LENGTHS], 0, layout=layout
    )
    for layout in ("padded", "packed")
}


def model(
    architecture: str, checkpointing: bool, layout: str = "padded", vocabulary: int = VOCABULARY
) -> PreTrainedModel:
    special = {f"{name}_token_id": 0 for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(architecture, vocab_size=vocabulary, **special, **SIZES[architecture])
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    prepare_for_training(made, gradient_checkpointing=checkpointing, dropout=False).train()
    if layout == "packed":
        use_packed_attention(made)
    return made


def step(
    architecture: str, checkpointing: bool, layout: str, precision: str, *, real: bool, with_reference: bool = False
) -> StepMemory:
    with contextlib.nullcontext() if real else fake_tensors("cpu") as mode:
        policy = to_dtype(model(architecture, checkpointing, layout), WEIGHT_DTYPES.get(precision))
        reference = model(architecture, False, layout).eval().requires_grad_(False) if with_reference else None
        batch = BATCH[layout] if real else fake_batch(BATCH[layout], mode)
        return training_step(policy, batch, precision=precision, reference=reference, accumulates=False)


CASES = [
    *itertools.product(SIZES, [False, True], ["padded", "packed"], ["32-true"]),
    *itertools.product(SIZES, [False, True], ["packed"], ["bf16-mixed"]),
    *itertools.product(SIZES, [False], ["padded"], ["bf16-true"]),
]


@pytest.mark.parametrize(("architecture", "checkpointing", "layout", "precision"), CASES)
def test_a_fake_step_needs_what_a_real_one_needs(
    architecture: str, checkpointing: bool, layout: str, precision: str
) -> None:
    kinds = architecture, checkpointing, layout, precision
    estimated = step(*kinds, real=False, with_reference=True)
    measured = step(*kinds, real=True, with_reference=True)
    for part in ("casts", "activations", "head", "working"):
        assert getattr(estimated, part) == pytest.approx(getattr(measured, part), rel=0.02, abs=4096), part


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_are_what_autograd_saves(architecture: str, checkpointing: bool, precision: str) -> None:
    """The storages that the real model hands to autograd, counted by autograd's own hooks as long as it holds them."""
    policy = model(architecture, checkpointing)
    weights = {p.untyped_storage().data_ptr() for p in [*policy.parameters(), *policy.buffers()]}
    saved: list[weakref.ref[Tensor]] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights and tensor.dtype != torch.long:
            saved.append(weakref.ref(tensor))
        return tensor

    engine = LogprobEngine(policy)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(precision):
        loss, _, _ = engine.loss(BATCH["padded"], lambda chosen, rejected, _: (chosen - rejected).sum())
    alive = [tensor for held in saved if (tensor := held()) is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    assert loss.requires_grad
    result = step(architecture, checkpointing, "padded", precision, real=False)
    expected = sum(storages.values())
    # the loss keeps the finished gradient of its hidden states, and no longer what it was computed from
    expected += len(BATCH["padded"].targets) * HIDDEN * 4
    rows, length = BATCH["padded"].input_ids.shape
    if checkpointing:  # a layer keeps nothing but its input, and what it is called with beside that
        assert result.activations < 0.4 * step(architecture, False, "padded", precision, real=False).activations
        if architecture == "llama":  # not through autograd: the mask, and two rotary tables
            expected += rows * length * length + 2 * rows * length * (HIDDEN // 4) * 4
    elif precision == "bf16-mixed":  # casts are a part of their own; those of the head autograd need not keep
        expected -= result.casts - VOCABULARY * HIDDEN * (2 + 4)
    assert result.activations == pytest.approx(expected, rel=0.03)


def test_the_head_is_counted_apart() -> None:
    """Buffers of the vocabulary's size grow with it; activations do not."""

    def of(vocabulary: int) -> StepMemory:
        with fake_tensors("cpu") as mode:
            batch = fake_batch(BATCH["padded"], mode)
            policy = model("llama", False, vocabulary=vocabulary)
            return training_step(policy, batch, precision="32-true", reference=None, accumulates=False)

    small, large = of(500), of(5000)
    tokens = len(BATCH["padded"].targets)
    assert small.activations == large.activations
    # all logits are kept, as they are few, beside the head's gradient; both are float32
    assert large.head == (tokens + 64) * 5000 * 4
    assert small.head == (tokens + 64) * 500 * 4


def test_a_gpu_needs_no_wide_copy_of_the_head() -> None:
    """Its kernels accumulate products of bfloat16 in float32; on a CPU the head is widened, and that copy kept."""

    def casts(device: str) -> int:
        with fake_tensors(device) as mode:
            batch = fake_batch(BATCH["padded"], mode)
            return training_step(
                model("llama", True), batch, precision="bf16-mixed", reference=None, accumulates=False
            ).casts

    assert casts("cpu") - casts("cuda") == VOCABULARY * HIDDEN * 4


def test_weights_and_their_bytes() -> None:
    real = model("llama", False)
    with fake_tensors("cpu"):
        skeleton = to_dtype(model("llama", False), torch.bfloat16)
        assert sum(p.numel() for p in skeleton.parameters()) == real.num_parameters()
        assert bytes_of(skeleton.parameters()) == real.num_parameters() * 2
        tied = to_dtype(model("gpt2", False), torch.bfloat16)
        assert tied.lm_head.weight is tied.transformer.wte.weight
        assert bytes_of(tied.parameters()) == model("gpt2", False).num_parameters() * 2


def test_quantised_weights_keep_their_dtype() -> None:
    with fake_tensors("cpu"):
        skeletons = [_quantised(bits) for bits in (4, 8)]
        for skeleton, kind in zip(skeletons, (torch.uint8, torch.int8), strict=True):
            before = {name: p.nbytes for name, p in skeleton.named_parameters() if not p.is_floating_point()}
            to_dtype(skeleton, torch.bfloat16)
            after = {name: p for name, p in skeleton.named_parameters() if name in before}
            assert before
            assert {name: p.nbytes for name, p in after.items()} == before
            assert {p.dtype for p in after.values()} == {kind}
            assert skeleton.get_input_embeddings().weight.dtype == torch.bfloat16


def _quantised(bits: Literal[4, 8]) -> Any:
    source: Any = SimpleNamespace(skeleton=lambda: model("llama", False))
    return QuantizedSource(source, QLora(bits=bits)).skeleton()


def test_gradients_of_earlier_micro_batches_stay() -> None:
    """With accumulation a weight's new gradient stands beside the old one until it is added."""
    with fake_tensors("cpu") as mode:
        batch = fake_batch(BATCH["padded"], mode)
        once, more = (
            training_step(model("llama", True), batch, precision="32-true", reference=None, accumulates=accumulates)
            for accumulates in (False, True)
        )
    assert once.activations == more.activations
    assert more.total >= once.total


def test_evaluation_keeps_nothing() -> None:
    with fake_tensors("cpu") as mode:
        batch = fake_batch(BATCH["padded"], mode)
        took = evaluation_step(model("llama", False), batch, "32-true")
    assert took < step("llama", False, "padded", "32-true", real=False).total / 2


def test_the_context_leaves_nothing_behind() -> None:
    from caldpo.logprobs.lm_head_ops import CHUNK_BYTES, WIDE_RESULTS

    before, wide, apply = dict(CHUNK_BYTES), dict(WIDE_RESULTS), torch.nn.Module._apply
    with fake_tensors("cuda"):
        assert CHUNK_BYTES["cpu"] == before["cuda"]
        assert WIDE_RESULTS["cpu"]
        assert torch.ones(2).device.type == "cpu"
    assert before == CHUNK_BYTES
    assert wide == WIDE_RESULTS
    assert torch.nn.Module._apply is apply
    assert torch.ones(2).sum().item() == 2.0
