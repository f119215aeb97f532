"""LoRA on a model's layers and on its head, enabled and disabled, and models in training mode."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch

from caldpo.data.collate import collate
from caldpo.logprobs import LogprobEngine
from caldpo.models.adapters import Lora
from caldpo.models.model_source import prepare_for_training
from tests.helpers.logprobs import pair_logprobs
from tests.helpers.messages import names
from tests.logprobs import naive
from tests.logprobs.engine import assert_equal, by_engine
from tests.logprobs.models import kept, make, wide_copy
from tests.logprobs.naive import PAIRS

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
WAYS = pytest.mark.parametrize("streamed", [False, True], ids=["call", "loss"])


def adapted(model: Any, targets: str | list[str] = "all-linear", rank: int = 3) -> Any:
    """The model under an adapter that changes its log-probs."""
    policy: Any = Lora(rank=rank, alpha=rank, target_modules=targets).apply(copy.deepcopy(model))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


@LAYOUTS
@WAYS
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "opt"])
def test_an_adapter_on_and_off(architecture: str, packed: bool, streamed: bool, checkpointed: bool) -> None:
    """Trained under its frozen base, whose head then takes no gradient; without it, the base is as ever."""
    targets = {"gpt2": ["c_attn"]}.get(architecture, ["q_proj", "v_proj"])
    policy = adapted(kept(architecture, packed=packed, checkpointed=checkpointed), targets)
    base = naive.long_way(wide_copy(kept(architecture)))
    expected = naive.long_way(wide_copy(policy), base.reference())
    assert (expected.logprobs - base.logprobs).abs().max() > 0.1
    actual = by_engine(policy, base.reference(), packed=packed, streamed=streamed)
    assert all(".lora_" in name for name in actual.gradients["dpo"])
    assert_equal(actual, expected)
    with policy.disable_adapter(), torch.no_grad():
        off = pair_logprobs(policy, collate(PAIRS, 0, layout="packed" if packed else "padded"))
    torch.testing.assert_close(torch.stack(off).double(), base.logprobs, rtol=1e-5, atol=1e-5)


@LAYOUTS
@WAYS
def test_an_adapter_on_the_head_is_announced_and_honoured(
    packed: bool, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    policy = adapted(make("llama", packed=packed), ["q_proj", "lm_head"])
    expected = naive.long_way(wide_copy(policy))
    with caplog.at_level(logging.WARNING, logger="caldpo"):
        actual = by_engine(policy, expected.reference(), packed=packed, streamed=streamed)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1  # once for an engine, not once for a batch
    names(said[0], "PeftModelForCausalLM", "adapter", "output head", "logits")
    assert any("lm_head" in name for name in actual.gradients["dpo"])
    assert_equal(actual, expected)


@LAYOUTS
@WAYS
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma2"])
def test_training_mode_without_dropout(architecture: str, packed: bool, streamed: bool) -> None:
    model = make(architecture, packed=packed).train()
    expected = naive.long_way(wide_copy(model))
    assert_equal(by_engine(model, expected.reference(), packed=packed, streamed=streamed), expected)
    assert model.training


def test_dropout_is_the_models_own() -> None:
    """From the same state of the generator, a padded batch drops what the model's own forward drops."""
    model = make("gpt2", resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2).train()
    batch, engine = collate(PAIRS, 0), LogprobEngine(model)
    assert engine.head is not None  # looked at before, since that draws nothing but takes a forward
    torch.manual_seed(3)
    actual = torch.cat(engine(batch))
    torch.manual_seed(3)
    logits = model(**batch.model_inputs()).logits.flatten(0, 1)[batch.predicts]
    for response in range(2 * len(PAIRS)):
        at = batch.response == response
        expected = naive.logprob(logits[at], batch.targets[at].tolist())
        assert actual[response].item() == pytest.approx(expected.item(), rel=1e-5)
    assert (torch.cat(engine(batch)) - actual).abs().max() > 0.1  # the next draw


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_dropout_of_packed_attention(architecture: str) -> None:
    """Drawn in training mode, not in evaluation mode, nor where the run has switched it off."""
    model = make(architecture, packed=True, attention_dropout=0.5)
    engine, batch = LogprobEngine(model), collate(PAIRS, 0, layout="packed")
    exact = torch.stack(engine(batch))
    torch.testing.assert_close(exact.double(), naive.logprobs(wide_copy(model), PAIRS), rtol=1e-5, atol=1e-5)
    model.train()
    assert (torch.stack(engine(batch)) - exact).abs().max() > 0.1
    mean = torch.stack([torch.stack(engine(batch)) for _ in range(2)])
    assert (mean[0] - mean[1]).abs().max() > 0.1
    prepare_for_training(model, gradient_checkpointing=False, dropout=False)
    torch.testing.assert_close(torch.stack(engine(batch)), exact, rtol=1e-6, atol=1e-6)
