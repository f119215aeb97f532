"""Weight files that cannot be what they say: refused by name before training, with both sizes or shapes."""

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

from caldpo.errors import CaldpoError
from caldpo.models.adapter_folder import load_adapter
from caldpo.models.adapters import Lora
from caldpo.models.hub_model import HubModel
from tests.tiny import tiny_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.0.self_attn.q_proj.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w1.weight"


def header(tensors: Any) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def of(dtype: str, shape: list[int], size: int) -> bytes:
    return header({"lm_head.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}) + bytes(size)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda whole: whole[:-10], r"cut off: its header tells of [\d,]+ bytes, and the file has [\d,]+"),
        (lambda whole: whole[:20], r"cut off: its header alone takes [\d,]+ bytes, and the file has 20"),
        (lambda whole: b"", "is empty"),
        (lambda whole: b"PK\x03\x04" + bytes(60), "does not begin as safetensors do"),
        (lambda whole: header(b"{abcd") + bytes(8), "no JSON"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (lambda whole: of("X9", [2], 8), r"dtype that is not known \(lm_head\.weight: X9\)"),
        (lambda whole: of("F32", [3], 8), r"lm_head\.weight of shape \[3\] in F32 takes 12 bytes, and has 8"),
        (lambda whole: whole + b"more", "damaged"),
    ],
)
def test_a_damaged_file_is_named(content: Callable[[bytes], bytes], why: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    file.write_bytes(content(file.read_bytes()))
    refused(tmp_path, rf"{WEIGHTS} .*{why}")


def refused(folder: Path, why: str) -> CaldpoError:
    with pytest.raises(CaldpoError, match=why) as caught:
        HubModel(str(folder)).load_policy()
    assert (caught.value.key, str(caught.value.value)) == ("model.path", str(folder))
    assert caught.value.remedy
    return caught.value


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object], name: str = WEIGHTS) -> Path:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


def test_shapes_and_kinds_of_numbers_that_are_not_the_models_are_named(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    changed(tmp_path, lambda tensors: tensors.update({QUERY: torch.zeros(8, 16)}))
    refused(tmp_path, rf"{QUERY} in {WEIGHTS} has the shape \[8, 16\], .* \[16, 16\]")
    changed(tmp_path, lambda tensors: tensors.update({QUERY: torch.zeros(16, 16).to(torch.float8_e4m3fn)}))
    refused(tmp_path, rf"{QUERY} in {WEIGHTS} is stored as F8_E4M3")
    changed(tmp_path, lambda tensors: tensors.update({QUERY: torch.zeros(16, 16, dtype=torch.int64)}))
    refused(tmp_path, "stored as I64")


def test_experts_that_do_not_make_one_tensor_are_named(tmp_path: Path) -> None:
    """transformers says this in a table on the terminal, and "see above" in its error."""
    tiny_experts("mixtral").save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    changed(tmp_path, lambda tensors: tensors.update({EXPERT: torch.zeros(8, 16)}))
    refused(tmp_path, rf"{EXPERT} in {WEIGHTS} has the shape \[8, 16\], .* \[16, 16\]")
    (tmp_path / WEIGHTS).write_bytes(whole)
    changed(tmp_path, lambda tensors: tensors.pop(EXPERT))
    refused(tmp_path, f"lack {EXPERT}")


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
    said = capsys.readouterr().out
    assert "9 tensors" in said
    assert "model.layers.*.mlp.down_proj.weight" in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda places, first: places.update({first: "pytorch_model.bin"}), r"no safetensors \(.*pytorch_model\.bin\)"),
        (lambda places, first: places.update({first: "../other.safetensors"}), "outside of the folder"),
        (lambda places, first: places.update({first: "/other.safetensors"}), "outside of the folder"),
        (lambda places, first: places.update({first: "gone.safetensors"}), r"gone\.safetensors, which is not there"),
        (lambda places, first: places.update({"extra.weight": places[first]}), r"says that extra\.weight is in .*not"),
        (lambda places, first: places.clear(), "weight_map"),
    ],
)
def test_an_index_is_held_against_its_files(change: Callable[..., object], why: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="5KB")
    said = json.loads((tmp_path / INDEX).read_text())
    change(said["weight_map"], next(iter(said["weight_map"])))
    (tmp_path / INDEX).write_text(json.dumps(said))
    refused(tmp_path, why)


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    """transformers takes whichever file it reads last."""
    tiny_model().save_pretrained(tmp_path, max_shard_size="5KB")
    one, two = sorted(tmp_path.glob("*.safetensors"))[:2]
    name, value = next(iter(load_file(one).items()))
    changed(tmp_path, lambda tensors: tensors.update({name: value}), two.name)
    refused(tmp_path, f"{name} is in {one.name} and in {two.name}")


@pytest.mark.parametrize("change", [{"num_attention_heads": 3}, {"hidden_size": "16"}, {"hidden_act": "none such"}])
def test_a_configuration_that_is_none_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert "config.json" in str(refused(tmp_path, "cannot load a model").remedy)


LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.update({LORA_A: torch.zeros(5, 16)}), r"q_proj\.lora_A.* \[5, 16\] .*\[4, 16\]"),
        (lambda tensors: tensors.pop(LORA_A), f"lacks {LORA_A}"),
        (lambda tensors: tensors.update({LORA_A.replace("0", "7"): torch.zeros(4, 16)}), r"no place .*layers\.7"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(change: Callable[..., object], why: str, tmp_path: Path) -> None:
    """PEFT leaves out what it has no place for, and leaves at its start what is missing, with a warning."""
    Lora(rank=4).apply(tiny_model()).save_pretrained(tmp_path, save_embedding_layers=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(tiny_model(), tmp_path)
    changed(tmp_path, change, "adapter_model.safetensors")
    with pytest.raises(CaldpoError, match=why):
        load_adapter(tiny_model(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CaldpoError, match="is empty"):
        load_adapter(tiny_model(), tmp_path)
