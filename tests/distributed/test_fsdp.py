"""Units of sharding, tied names, and collective operations, seen by one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.checkpointing import checkpoint_io
from caldpo.distributed.fsdp import (
    decoder_layers,
    full_state_dict,
    full_tensor,
    is_sharded,
    reshard,
    shard,
    tied_names,
)
from caldpo.errors import CaldpoError
from caldpo.lightning_trainer import TrainerSettings
from caldpo.reference.fingerprint import weights_digest
from caldpo.utils import collectives as ranks
from caldpo.utils.collectives import call_on_all_ranks, largest_over_ranks, shard_items
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_model

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 32, "head_dim": 8, "pad_token_id": 0}
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3"), SMALL),
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 32},
    "gpt_neox": {**SMALL, "intermediate_size": 32},
}


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_layers_are_sharded_one_by_one(family: str) -> None:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = decoder_layers(model)
    assert len(layers) == 3
    assert len({type(layer) for layer in layers}) == 1
    below = sum(value.numel() for layer in layers for value in layer.parameters())
    # the rest is what the root gathers: embeddings, the last norm, an output head
    rest = sum(value.numel() for value in model.parameters()) - below
    assert rest <= (3 * 32 + 2048) * 16


def test_nested_layers_are_sharded_with_their_parent() -> None:
    class Block(nn.Module):
        def __init__(self, inner: nn.Module | None = None) -> None:
            super().__init__()
            self.inner = inner

    class Model(nn.Module):
        _no_split_modules = ("Block",)

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(Block()), Block()])

    model = Model()
    assert decoder_layers(model) == list(model.blocks)  # type: ignore[arg-type]
    del Model._no_split_modules
    assert decoder_layers(model) == []  # type: ignore[arg-type]


def test_a_sharded_model_computes_the_same(group: None) -> None:
    model, plain = tiny_model(seed=3), tiny_model(seed=3)
    buffers = dict(plain.named_buffers())
    shard(model, init_device_mesh("cpu", (1,)), torch.device("cpu"))
    assert is_sharded(model)
    assert not is_sharded(plain)
    assert all(isinstance(value, DTensor) for value in model.parameters())
    assert all(
        torch.equal(full_tensor(value), other)
        for value, other in zip(model.parameters(), plain.parameters(), strict=True)
    )
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert weights_digest(model) == weights_digest(plain), "log-probs that were cached by a whole model are taken"
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=0)
    gathered = model.get_output_embeddings().weight
    assert not isinstance(gathered, DTensor), "the engine takes the head's weight after the forward pass"
    reshard(model)
    assert all(isinstance(value, DTensor) for value in model.parameters())
    state = full_state_dict(model)
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    assert full_state_dict(plain).keys() == plain.state_dict().keys()


def test_names_of_a_tied_weight() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.c.weight = self.a.weight

    assert tied_names(Module()) == {"c.weight": "a.weight"}


@pytest.mark.parametrize(
    ("items", "rank", "share"), [(range(6), 1, [1, 4]), (range(5), 0, [0, 3]), (range(4), 2, [2, 3]), ([], 1, [])]
)
def test_every_rank_has_as_many(items: Any, rank: int, share: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_several", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    assert list(shard_items(items)) == share


def test_the_worst_of_all_ranks_is_known_to_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert largest_over_ranks(1.0, 2.0) == (1.0, 2.0)
    monkeypatch.setattr(ranks, "all_gather", lambda mine: [mine, (3.0, 0.5), (2.0, float("nan"))])
    worst = largest_over_ranks(1.0, 2.0)
    assert worst[0] == 3.0
    assert worst[1] != worst[1]


def test_what_fails_on_one_rank_fails_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call_on_all_ranks(lambda: 3) == [3]
    monkeypatch.setattr(ranks, "all_gather", lambda mine: [mine, (None, "No space left on device")])
    with refused("No space left on device", "rank 1", kind=OSError):
        call_on_all_ranks(lambda: 3)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"strategy": "fsdp", "precision": "16-mixed"}, "trainer.precision"),
        ({"strategy": "fsdp", "compile": True}, "trainer.compile"),
        ({"strategy": "ddp", "cpu_offload": True}, "trainer.cpu_offload"),
    ],
)
def test_settings_that_exclude_a_strategy_are_refused(settings: dict[str, Any], key: str) -> None:
    with refused(key=key):
        TrainerSettings(**settings).check()
    TrainerSettings(strategy="fsdp", precision="bf16-mixed", cpu_offload=True).check()


def test_a_caldpo_error_is_the_same_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "all_gather", lambda mine: [mine, (None, CaldpoError("is damaged", key="step-3"))])
    with refused("is damaged", key="step-3"):
        call_on_all_ranks(lambda: 3)


def test_shards_that_the_first_rank_cannot_see_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that do not share the folder would leave one that lacks parts."""
    monkeypatch.setattr(checkpoint_io, "_VISIBLE_WITHIN", 0.2)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.safetensors").touch()
    checkpoint_io._wait_for_files(tmp_path, ["weights/a.safetensors"])
    with refused("weights/b.safetensors", "rank", kind=OSError):
        checkpoint_io._wait_for_files(tmp_path, ["weights/a.safetensors", "weights/b.safetensors"])


@pytest.mark.parametrize(
    ("rank", "own"), [(0, ["o/rank-00000-of-2", "w/shard-00001-m"]), (1, ["o/rank-00001-of-2", "w/shard-00002-m"])]
)
def test_each_rank_lists_its_own_files(
    rank: int, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("o/rank-00000-of-2", "o/rank-00001-of-2", "w/shard-00001-m", "w/shard-00002-m"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "training.pt").touch()
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(checkpoint_io, "is_first_rank", lambda: rank == 0)
    mine = [f"{name}.safetensors" for name in own] + (["training.pt"] if rank == 0 else [])
    assert checkpoint_io._own_files(tmp_path) == sorted(mine)
