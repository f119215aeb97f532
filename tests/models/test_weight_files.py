"""Damaged or mismatched weight files are refused before training, by name and with both sizes or shapes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.models.adapter_folder import load_adapter
from caldpo.models.adapters import Lora
from caldpo.models.hub_model import HubModel
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.0.self_attn.q_proj.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w1.weight"


def header(tensors: Any) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def of(dtype: str, shape: list[int], size: int) -> bytes:
    return header({"lm_head.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}) + bytes(size)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (lambda whole: whole[:-10], ("{whole:,} bytes", "{cut:,}")),
        (lambda whole: whole[:20], ("header", "bytes", 20)),
        (lambda whole: b"", ("empty",)),
        (lambda whole: b"PK\x03\x04" + bytes(60), ("no safetensors file", "64 bytes")),
        (lambda whole: header(b"{abcd") + bytes(8), ("header", "JSON")),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", ("Git LFS", "git lfs pull")),
        (lambda whole: of("X9", [2], 8), ("damaged", "X9")),
        (lambda whole: of("F32", [3], 8), ("damaged", "invalid shape")),
        (lambda whole: whole + b"more", ("damaged", "SafetensorError")),
    ],
)
def test_a_damaged_file_is_named(content: Callable[[bytes], bytes], facts: tuple[Any, ...], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    whole = file.stat().st_size
    file.write_bytes(content(file.read_bytes()))
    sizes = {"whole": whole, "cut": whole - 10}
    load(tmp_path, WEIGHTS, *(str(fact).format(**sizes) for fact in facts), remedy="file")


def load(folder: Path, *facts: Any, remedy: str | None = None) -> None:
    """Load a policy whose folder is refused with all these facts and a remedy."""
    with refused(*facts, key="model.path", value=folder, remedy=remedy) as caught:
        HubModel(str(folder)).load_policy()
    assert getattr(caught.value, "remedy", None)


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object], name: str = WEIGHTS) -> Path:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


def test_shapes_and_kinds_of_numbers_that_are_not_the_models_are_named(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    changed(tmp_path, lambda tensors: tensors.update({QUERY: torch.zeros(8, 16)}))
    load(tmp_path, QUERY, WEIGHTS, [8, 16], [16, 16], remedy="config.json")
    changed(tmp_path, lambda tensors: tensors.update({QUERY: torch.zeros(16, 16).to(torch.float8_e4m3fn)}))
    load(tmp_path, QUERY, WEIGHTS, "F8_E4M3", "quantization_config", remedy="F64, F32, BF16, F16")
    changed(tmp_path, lambda tensors: tensors.update({QUERY: torch.zeros(16, 16, dtype=torch.int64)}))
    load(tmp_path, QUERY, WEIGHTS, "I64", remedy="F64, F32, BF16, F16")


def test_experts_that_do_not_make_one_tensor_are_named(tmp_path: Path) -> None:
    """transformers says this in a table on the terminal, and "see above" in its error."""
    tiny_experts("mixtral").save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    changed(tmp_path, lambda tensors: tensors.update({EXPERT: torch.zeros(8, 16)}))
    load(tmp_path, EXPERT, WEIGHTS, [8, 16], [16, 16], remedy="config.json")
    (tmp_path / WEIGHTS).write_bytes(whole)
    changed(tmp_path, lambda tensors: tensors.pop(EXPERT))
    load(tmp_path, EXPERT, remedy="checkpoint")


def tiny_experts(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 44, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **special)).eval()


def test_tensors_that_the_model_has_no_place_for_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config.json of one layer for weights of two makes another model, and nothing fails."""
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    HubModel(str(tmp_path)).load_policy()
    output = capsys.readouterr().out
    names(output, "9 tensors", tmp_path, WEIGHTS, "config.json", "model.layers.*.mlp.down_proj.weight")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda places, first: places.update({first: "pytorch_model.bin"}), ("pytorch_model.bin", "not safetensors")),
        (lambda places, first: places.update({first: "../other.safetensors"}), ("../other.safetensors", "outside")),
        (lambda places, first: places.update({first: "/other.safetensors"}), ("/other.safetensors", "outside")),
        (lambda places, first: places.update({first: "gone.safetensors"}), ("gone.safetensors",)),
        (lambda places, first: places.update({"extra.weight": places[first]}), ("extra.weight",)),
        (lambda places, first: places.clear(), ("weight_map",)),
    ],
)
def test_an_index_is_held_against_its_files(
    change: Callable[..., object], facts: tuple[str, ...], tmp_path: Path
) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="5KB")
    output = json.loads((tmp_path / INDEX).read_text())
    change(output["weight_map"], next(iter(output["weight_map"])))
    (tmp_path / INDEX).write_text(json.dumps(output))
    load(tmp_path, INDEX, *facts)


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    """transformers takes whichever file it reads last."""
    tiny_model().save_pretrained(tmp_path, max_shard_size="5KB")
    one, two = sorted(tmp_path.glob("*.safetensors"))[:2]
    name, value = next(iter(load_file(one).items()))
    changed(tmp_path, lambda tensors: tensors.update({name: value}), two.name)
    load(tmp_path, name, one.name, two.name, remedy="file")


@pytest.mark.parametrize("change", [{"num_attention_heads": 3}, {"hidden_size": "16"}, {"hidden_act": "none such"}])
def test_a_configuration_that_is_none_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    load(tmp_path, "cannot load", remedy="config.json")


LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OTHER = LORA_A.replace("0", "7")
ADAPTER = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda tensors: tensors.update({LORA_A: torch.zeros(5, 16)}), ("q_proj.lora_A", [5, 16], [4, 16])),
        (lambda tensors: tensors.pop(LORA_A), (LORA_A,)),
        (lambda tensors: tensors.update({OTHER: torch.zeros(4, 16)}), (OTHER,)),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(
    change: Callable[..., object], facts: tuple[Any, ...], tmp_path: Path
) -> None:
    """PEFT leaves out what it has no place for, and leaves at its start what is missing, with a warning."""
    Lora(rank=4).apply(tiny_model()).save_pretrained(tmp_path, save_embedding_layers=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(tiny_model(), tmp_path)
    changed(tmp_path, change, ADAPTER)
    with refused("LlamaForCausalLM", ADAPTER, *facts, key=tmp_path, remedy="model.path"):
        load_adapter(tiny_model(), tmp_path)
    (tmp_path / ADAPTER).write_bytes(b"")
    with refused(ADAPTER, "empty", key="adapter", value=tmp_path, remedy="file"):
        load_adapter(tiny_model(), tmp_path)
