"""An estimate of architectures that are no plain decoder: a figure, or "not known" for the part that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaModel, PreTrainedModel

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.estimate import main as estimate
from caldpo.estimation.fake_model import fake_batch, fake_tensors, supports_packing
from caldpo.estimation.run_flops import ModelCost, model_costs
from caldpo.estimation.step_memory import StepMemory, training_step
from caldpo.models.adapters import Lora
from caldpo.models.model_source import prepare_for_training
from tests.helpers.command import call, train
from tests.helpers.messages import names, refused
from tests.helpers.tiny import VOCABULARY, tiny_model, tiny_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
LENGTHS = [(60, 40, 80), (30, 90, 50), (100, 20, 20)]
BATCH = collate([TokenizedPair([5] * p, [6] * c, [7] * r, None, None, 0, "") for p, c, r in LENGTHS], 0)


def made(kind: str, **changes: Any) -> PreTrainedModel:
    special = {f"{name}_token_id": 0 for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, vocab_size=500, **special, **(SIZES | changes))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("adapted", [False, True])
def test_fake_experts_in_float32_need_what_real_ones_need(adapted: bool) -> None:
    """PyTorch knows the shapes of their product in bfloat16 alone."""

    def step(real: bool) -> StepMemory:
        policy = prepare_for_training(made("mixtral"), gradient_checkpointing=False, dropout=False)
        policy = (Lora(rank=4).apply(policy) if adapted else policy).train()
        batch = BATCH if real else fake_batch(BATCH, mode)
        return training_step(policy, batch, precision="32-true", reference=None, accumulates=False)

    measured = step(real=True)
    with fake_tensors("cpu") as mode:
        estimated = step(real=False)
    assert estimated.activations == pytest.approx(measured.activations, rel=0.03)
    assert estimated.total == pytest.approx(measured.total, rel=0.1)
    assert torch.nn.functional.grouped_mm.__module__ != "caldpo.estimation.fake_model"


@pytest.mark.parametrize(("kind", "packed"), [("gpt_oss", False), ("llama", True), ("mixtral", True)])
def test_attention_with_sinks_is_padded_as_in_the_run(kind: str, packed: bool) -> None:
    with fake_tensors("cpu") as mode:
        assert supports_packing(made(kind, sliding_window=4096), mode) is packed


def test_operations_of_layers_of_several_sizes_and_of_none() -> None:
    """Gemma 4 has larger heads in its global layers; xLSTM has no attention."""
    with torch.device("meta"):
        gemma = made("gemma4_text", layer_types=["sliding_attention", "full_attention"], global_head_dim=32)
        other = AutoConfig.for_model("xlstm", vocab_size=500, hidden_size=64, num_heads=2, num_blocks=1)
        xlstm = AutoModelForCausalLM.from_config(other)
    assert ModelCost.of(gemma).attention == 4 * 16 + 4 * 32
    names(model_costs(xlstm, None, None)[2], "attention heads")


def test_a_model_without_checkpointing_is_refused_by_that_key() -> None:
    with torch.device("meta"):
        model = made("ctrl", n_embd=64, n_layer=1, n_head=4, dff=16)
    key = "model.gradient_checkpointing"
    with refused("CTRLLMHeadModel", key=key, value="true", remedy=f"{key}=false"):
        prepare_for_training(model, gradient_checkpointing=True, dropout=False)
    prepare_for_training(model, gradient_checkpointing=False, dropout=False)


COMMAND = [
    "model=zephyr", "model.path=model", "trainer=cpu", "trainer.precision=32-true", "data=local",
    "data.train=pairs.jsonl", "trainer.progress_bar=false", "logger=csv",
]  # fmt: skip


def test_what_cannot_be_run_without_values_is_not_known_and_the_rest_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    estimate([*COMMAND, "hydra.run.dir=one"])
    whole = json.loads(Path("one/estimate.json").read_text())

    def needs_numbers(*_: Any, **__: Any) -> None:
        raise KeyError("of no kind that is known")

    monkeypatch.setattr(LlamaModel, "forward", needs_numbers)
    capsys.readouterr()
    estimate([*COMMAND, "layout=padded", "hydra.run.dir=two"])
    assert "not known" in capsys.readouterr().out
    result = json.loads(Path("two/estimate.json").read_text())
    assert "KeyError" in result["activations_unknown"]
    for part in ("policy: weights", "gradients", "optimiser state"):
        assert result["memory_bytes"][part] == whole["memory_bytes"][part] > 0


def test_a_model_without_checkpointing_in_train_and_estimate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = AutoConfig.for_model("ctrl", vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, dff=16, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    (Path("model") / "model.safetensors").unlink()  # it is seen before weights load
    fits = ["data.max_length=64", "data.max_prompt_length=32", "callbacks.samples.prompts=0"]
    train(*COMMAND, *fits, "hydra.run.dir=run", fails=1)
    names(capsys.readouterr().err, "model.gradient_checkpointing=true", "model.gradient_checkpointing=false")
    call(estimate, [*COMMAND, *fits, "hydra.run.dir=one"], 1)
    names(capsys.readouterr().err, "model.gradient_checkpointing=true", "model.gradient_checkpointing=false")
    estimate([*COMMAND, *fits, "model.gradient_checkpointing=false", "hydra.run.dir=two"])
    assert json.loads(Path("two/estimate.json").read_text())["activations_unknown"] is None


def test_a_resident_reference_that_cannot_be_drawn_without_values(folder: Path) -> None:
    """ModernBERT draws its weights from a cut normal distribution, which looks at their values."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("modernbert-decoder", vocab_size=VOCABULARY, **sizes, eos_token_id=2, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained("model")
    tiny_tokenizer().save_pretrained("words")
    own = ["model.tokenizer=words", "reference=frozen", "callbacks.samples.prompts=0"]
    estimate([*COMMAND, *own, "hydra.run.dir=one"])
    parts = json.loads(Path("one/estimate.json").read_text())["memory_bytes"]
    assert parts["reference: weights"] == parts["policy: weights"] > 0
