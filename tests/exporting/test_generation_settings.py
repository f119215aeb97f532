"""Generation settings of a checkpoint that transformers does not save or load: the policy lands and generates alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from caldpo.exporting.export_policy import export_notes, write_policy
from caldpo.models.generation_settings import valid_settings
from caldpo.models.hub_model import load_causal_lm
from tests.helpers.messages import names
from tests.helpers.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def written(checkpoint: Path, own: Any, to: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of an export of the checkpoint with these of its own, and what is said before training."""
    (checkpoint / "generation_config.json").write_text(own if isinstance(own, str) else json.dumps(own))
    policy = load_causal_lm(str(checkpoint), key="model.path")
    before = policy.generation_config.to_dict()
    notes = export_notes(policy, tiny_tokenizer())
    write_policy(policy, tiny_tokenizer(), to)
    assert policy.generation_config.to_dict() == before, "the policy in memory keeps its own"
    return json.loads((to / "generation_config.json").read_text()), notes


def greedy(folder: Path) -> list[int]:
    """By transformers alone, as somebody who downloads the folder would."""
    return (
        AutoModelForCausalLM.from_pretrained(folder).generate(torch.tensor([[5, 6, 7]]), max_new_tokens=6)[0].tolist()
    )


@pytest.mark.parametrize(
    ("own", "gone"),
    [
        ({"do_sample": False, "temperature": 0.0, "top_k": 1}, "temperature=0.0, top_k=1"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"do_sample": True, "temperature": 0.0, "top_p": 0.9}, "temperature=0.0, top_p=0.9"),
        ({"do_sample": False, "temperature": 0.7, "min_p": 0.1}, "temperature=0.7, min_p=0.1"),
        ({"length_penalty": 2.0, "early_stopping": True}, "early_stopping=True, length_penalty=2.0"),
        ({"num_beams": 1, "early_stopping": True}, "early_stopping=True"),
        ({"do_sample": False, "temperature": "hot"}, "temperature=hot"),
        ({"output_scores": True}, "output_scores=True"),
    ],
    ids=str,
)
def test_what_is_not_saved_is_left_out_and_said(checkpoint: Path, tmp_path: Path, own: dict, gone: str) -> None:
    ends = {"eos_token_id": [2, 5], "bos_token_id": 1}
    settings, notes = written(checkpoint, own | ends, tmp_path / "policy")
    assert len(notes) == 1
    for setting in gone.split(", "):
        names(notes[0], setting)
        assert setting.split("=")[0] not in settings
    assert not settings.get("do_sample"), "it was greedy, and stays so"
    assert (settings["eos_token_id"], settings["pad_token_id"]) == ([2, 5], 0)
    (checkpoint / "generation_config.json").write_text(json.dumps(ends | {"pad_token_id": 0}))
    assert greedy(tmp_path / "policy") == greedy(checkpoint)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    loaded.generation_config.max_new_tokens = 3  # a changed one is held to more than one that is saved as it was
    loaded.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 1.3, "max_new_tokens": 9},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40},
        {"num_beams": 4, "length_penalty": 2.0},
        {"suppress_tokens": [4, 5], "own_entry": "kept"},
    ],
    ids=str,
)
def test_what_can_be_saved_stays(checkpoint: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    settings, notes = written(checkpoint, own, tmp_path / "policy")
    assert notes == []
    assert {name: settings[name] for name in own} == own
    assert (settings["eos_token_id"], settings["pad_token_id"], settings["bos_token_id"]) == (2, 0, 1)


@pytest.mark.parametrize(
    ("own", "gone"),
    [
        ({"num_return_sequences": 4}, "num_return_sequences"),
        ({"cache_implementation": "unheard-of"}, "cache_implementation"),
        ({"early_stopping": "perhaps"}, "early_stopping"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"suppress_tokens": [1], "forced_eos_token_id": 1}, "forced_eos_token_id"),
        ({"watermarking_config": {"bias": 1, "unheard_of": 2}}, "watermarking_config"),
        ({"logits_processor": [1]}, "logits_processor"),
        ({"compile_config": {"a": 1}}, "compile_config"),
        ([1], "all"),
    ],
    ids=str,
)
def test_what_keeps_transformers_from_loading_a_model_is_left_out(
    checkpoint: Path, own: Any, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = own if isinstance(own, list) else own | {"eos_token_id": [2, 7], "repetition_penalty": 1.1}
    (checkpoint / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, TypeError)):
        AutoModelForCausalLM.from_pretrained(checkpoint)
    policy = load_causal_lm(str(checkpoint), key="model.path", announce=True)
    output = capsys.readouterr().out
    (note,) = (line for line in output.splitlines() if "generation_config.json" in line)
    names(note, gone)
    if isinstance(own, dict):
        assert policy.generation_config.eos_token_id == [2, 7]
        assert policy.generation_config.repetition_penalty == 1.1


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": float("nan")},
        {"do_sample": True, "temperature": -1.0},
        {"do_sample": True, "top_p": -0.5},
        {"do_sample": True, "top_k": -3},
        {"do_sample": True, "min_p": 2.0},
        {"repetition_penalty": 0.0},
    ],
    ids=str,
)
def test_what_nothing_can_be_generated_with_is_left_out(own: dict[str, Any]) -> None:
    model = tiny_model()
    model.generation_config = GenerationConfig(**own, pad_token_id=0)
    with pytest.raises((ValueError, RuntimeError)):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
    model.generation_config, gone = valid_settings(model.generation_config.to_dict(), saved=True)
    assert set(gone) == set(own) - {"do_sample"}
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
