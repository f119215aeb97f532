"""Probes of a model with a few tokens, what they refuse, and dropout that is disabled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.exporting.export_policy import write_policy
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.layout import choose_layout
from caldpo.models.adapters import Lora
from caldpo.models.dropout import has_dropout
from caldpo.models.model_probes import probe, require_valid_logprobs, tolerance
from caldpo.models.model_source import prepare_for_training
from caldpo.models.prompt_batching import padded_batch_size, prompt_batches
from caldpo.models.tabular_model import TabularConfig, TabularLM
from tests.architectures.examine import one_by_one, relative
from tests.architectures.families import build
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model, tiny_tokenizer

HALF = (torch.float32, torch.bfloat16)


def prepared(kind: str, **keys: Any) -> Any:
    return prepare_for_training(build(kind, **keys), gradient_checkpointing=False, dropout=False)


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_usual_model_is_sound_and_left_as_it_was(kind: str, dtype: torch.dtype) -> None:
    model = prepared(kind).to(dtype).train()
    if dtype == torch.float64 and kind == "mixtral":
        model.set_experts_implementation("eager")  # the others know no float64
    before, numbers = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    require_valid_logprobs(model, training=True, max_length=64)
    actual = probe(model)
    assert max(actual.future, actual.batch, actual.noise) < tolerance(model)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["xlnet", "roberta"])
def test_what_sees_later_tokens_is_refused_with_its_type(kind: str, dtype: torch.dtype) -> None:
    with refused("causal", key="reference.path", value=kind, remedy="is_decoder") as caught:
        require_valid_logprobs(build(kind).to(dtype), training=False, key="reference.path")
    assert getattr(caught.value, "value", None) == kind


def test_an_encoder_that_is_a_decoder_is_none() -> None:
    require_valid_logprobs(prepared("bert", is_decoder=True), training=True)


def test_what_does_not_heed_the_mask_is_refused() -> None:
    """Every token gets the row's mean length, padding counted: causal, and another alone."""
    model: Any = prepared("llama")
    model.get_input_embeddings().register_forward_hook(lambda _, ids, out: out * (1 + ids[0].shape[1] / 10))
    with refused("attention_mask", key="model", value="llama", remedy="model") as caught:
        require_valid_logprobs(model, training=False)
    assert getattr(caught.value, "value", None) == "llama"


@pytest.mark.parametrize("adapted", [False, True])
def test_noise_without_a_rate_is_refused_unless_it_is_wanted(adapted: bool) -> None:
    model = prepared("phimoe", rate=0.3)
    policy: Any = Lora(rank=2, dropout=0.5).apply(model) if adapted else model
    with refused("phimoe", key="model.dropout", value="false", remedy="model.dropout=true"):
        require_valid_logprobs(policy, training=True)
    require_valid_logprobs(policy, training=True, dropout=True)
    require_valid_logprobs(policy, training=False)


def test_an_adapters_own_dropout_is_no_noise_of_the_model() -> None:
    require_valid_logprobs(Lora(rank=2, dropout=0.5).apply(tiny_model()), training=True)


def test_a_layer_that_is_rarely_dropped_is_found() -> None:
    """Random numbers are drawn, so that one pass that shows nothing is not enough."""
    model: Any = prepared("llama")

    def drop(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 0 if module.training and torch.rand(()) < 0.3 else output

    model.model.layers[1].mlp.register_forward_hook(drop)
    with refused("llama", key="model.dropout", value="false", remedy="model.dropout=true"):
        require_valid_logprobs(model, training=True)


@pytest.mark.parametrize("kind", ["opt", "falcon", "mpt"])
def test_the_checkpoints_own_rates_are_written_again(kind: str, tmp_path: Path) -> None:
    """Rates of 0 in the exported config.json would be another model for whoever trains it with dropout."""
    model = build(kind, rate=0.3)
    model.config.save_pretrained(tmp_path / "before")
    prepare_for_training(model, gradient_checkpointing=False, dropout=False)
    assert not has_dropout(model)
    write_policy(model, tiny_tokenizer(), tmp_path / "after")
    assert not has_dropout(model)
    before, after = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("before", "after"))
    assert {k: v for k, v in after.items() if "drop" in k} == {k: v for k, v in before.items() if "drop" in k}
    assert after.get("attn_config") == before.get("attn_config")


def test_rwkv_keeps_its_weights_when_it_is_evaluated(tmp_path: Path) -> None:
    """By itself it halves some of them in place from the seventh layer on, and would be saved like that."""
    model = prepared("rwkv", num_hidden_layers=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        actual = model(torch.tensor([[5, 6, 7]])).logits
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    write_policy(model, tiny_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rescale_every"] == 6
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(torch.tensor([[5, 6, 7]])).logits, actual, rtol=1e-3, atol=1e-3)


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}


def test_dynamic_frequencies_are_a_rows_own_whatever_came_before() -> None:
    """transformers takes those of the longest row, and remembers it for batches to come."""
    model = prepared("llama", max_position_embeddings=16, **DYNAMIC)
    lengths = ((10, 20, 9), (3, 4, 2), (8, 8, 7))  # of each pair; with and beyond 16 tokens, and just 16
    pairs = [TokenizedPair([5] * p, [*range(9, 9 + c)], [*range(7, 7 + r)], None, None, 0, "") for p, c, r in lengths]
    expected = one_by_one(build("llama", max_position_embeddings=16, **DYNAMIC), pairs, fresh=True)
    layout, why = choose_layout("auto", model, 30)
    assert layout == "padded"
    names(why, "16 tokens")
    assert choose_layout("auto", model, 16)[0] == "packed"
    engine = LogprobEngine(model)
    with torch.no_grad():
        for order in ([0, 1, 2], [2, 0], [2], [1]):
            actual = torch.cat(engine(collate([pairs[i] for i in order], 0)))
            assert relative(actual, expected[order + [3 + i for i in order]]) < 1e-6


def test_code_of_a_models_own_is_refused_beyond_the_length_where_frequencies_change() -> None:
    model: Any = TabularLM(TabularConfig(3, 4))
    model.config.rope_scaling, model.config.max_position_embeddings = {"type": "dynamic", "factor": 2.0}, 16
    require_valid_logprobs(model, training=True, max_length=16)
    with refused("TabularLM", "16 tokens", key="data.max_length", value=17, remedy="data.max_length=16"):
        require_valid_logprobs(model, training=True, max_length=17)


def test_a_temperature_by_place_gets_padded_rows() -> None:
    keys: dict[str, Any] = {"floor_scale": 10, "attn_scale": 0.5, "no_rope_layers": [0, 1]}
    model = prepared("llama4_text", **keys)
    pairs = [TokenizedPair([5] * 8, [6, 7, 8, 9], [9, 8], None, None, i, "") for i in range(3)]
    expected = one_by_one(build("llama4_text", **keys), pairs)
    layout, why = choose_layout("auto", model, 12)
    assert layout == "padded"
    names(why, "temperature")
    with torch.no_grad():
        assert relative(torch.cat(LogprobEngine(model)(collate(pairs, 0, layout=layout))), expected) < 1e-5


@pytest.mark.parametrize(
    ("kind", "batches"),
    [
        ("llama", [[0, 1, 2], [3, 4]]),
        ("recurrent_gemma", [[1, 4], [0, 3], [2]]),
        ("rwkv", [[0], [1], [2], [3], [4]]),
    ],
)
def test_prompts_are_answered_together_where_that_changes_nothing(kind: str, batches: list[list[int]]) -> None:
    prompts = [[5] * length for length in (4, 2, 9, 4, 2)]
    model = build(kind)
    assert prompt_batches(model, prompts, 3, max_new_tokens=4, device=model.device) == batches


def test_a_checkpoints_own_generation_settings_do_not_matter() -> None:
    model = build("llama")
    own = GenerationConfig(num_beams=3, repetition_penalty=9.0, eos_token_id=5, length_penalty=2.0, early_stopping=True)
    model.generation_config = own
    assert prompt_batches(model, [[5] * 4, [5] * 3], 2, max_new_tokens=4, device=model.device) == [[0, 1]]
    assert model.generation_config is own


def test_others_pad_no_rows_that_would_not_be_as_alone() -> None:
    models = build("llama"), build("llama", max_position_embeddings=16, **DYNAMIC), build("recurrent_gemma")
    assert [padded_batch_size(model, 8, device=model.device) for model in models] == [8, 1, 1]


@pytest.mark.parametrize(("new", "together"), [(1, True), (6, False)])
def test_a_temperature_by_place_keeps_padded_prompts_below_where_it_changes(new: int, together: bool) -> None:
    model = build("llama4_text", floor_scale=10)
    actual = prompt_batches(model, [[5] * 4, [5] * 3], 2, max_new_tokens=new, device=model.device)
    assert actual == ([[0, 1]] if together else [[1], [0]])


def test_a_model_that_cannot_compute_is_named() -> None:
    """Two heads of queries for eight of keys: transformers builds it, and fails in its first forward."""
    config = AutoConfig.for_model(
        "mistral", vocab_size=44, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=8
    )
    with refused("MistralForCausalLM", "RuntimeError", key="reference.path", remedy="config.json"):
        require_valid_logprobs(AutoModelForCausalLM.from_config(config), training=True, key="reference.path")
