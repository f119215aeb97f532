"""What each device holds, by sums written out, and the groups of real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caldpo.estimate import main
from caldpo.estimation.sharded_memory import Sharding, ShardUnits, gathered_bytes
from tests.helpers.messages import names
from tests.helpers.tiny import tiny_model

GROUPS = ShardUnits(layer=100, root=1000, layer_trained=10, root_trained=500)


@pytest.mark.parametrize(
    ("strategy", "devices", "offload", "on_device", "whole"),
    [  # bytes of 800 of weights, gradients and optimiser each, and what is gathered_bytes
        ("auto", 1, False, (800, 800, 800), 0),
        ("auto", 8, False, (800, 800, 800), 0),
        ("ddp", 8, False, (800, 800, 800), 0),
        ("fsdp", 8, False, (100, 100, 100), 1000 + 2 * 100 + 500 + 10),
        ("fsdp", 8, True, (0, 0, 0), 1000 + 2 * 100 + 500 + 10),
        ("fsdp", 1, False, (800, 800, 800), 0),
        ("deepspeed_stage_2", 8, False, (800, 100, 100), 500 + 10),
        ("deepspeed_stage_2", 8, True, (800, 100, 0), 500 + 10),
    ],
)
def test_parts(strategy: str, devices: int, offload: bool, on_device: tuple[int, ...], whole: int) -> None:
    sharding = Sharding.of(strategy, devices, cpu_offload=offload)
    assert tuple(sharding.on_device(name, 800) for name in ("weights", "gradients", "optimizer")) == on_device
    assert gathered_bytes(GROUPS, sharding) == whole
    assert sharding.replicates is (devices > 1 and strategy in ("auto", "ddp"))


def test_parts_are_rounded_up() -> None:
    assert Sharding.of("fsdp", 8).on_device("weights", 801) == 101


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "mistral"])
def test_groups_of_a_model(architecture: str) -> None:
    """Layers are alike, so their bytes are a fraction of what is no embedding, head or last norm."""
    model = tiny_model(architecture)
    blocks = [p for name, p in model.named_parameters() if ".layers." in name or ".h." in name]
    count = model.config.num_hidden_layers
    result = ShardUnits.of(model)
    assert result.layer == sum(p.nbytes for p in blocks) / count
    assert result.root == sum(p.nbytes for p in model.parameters()) - result.layer * count
    assert (result.layer_trained, result.root_trained) == (result.layer, result.root)
    for p in model.parameters():
        p.requires_grad_(False)
    assert ShardUnits.of(model) == ShardUnits(result.layer, result.root, 0, 0)


def test_an_estimate_is_of_one_device(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def estimated(*overrides: str) -> dict[str, Any]:
        keys = ["model=random", "model.tokenizer=tokenizer", "model.hidden_size=16", "data=local"]
        main([*keys, "data.train=pairs.jsonl", "data.micro_batch_size=2", "logger=csv", "hydra.run.dir=e", *overrides])
        return json.loads(Path("e/estimate.json").read_text())

    alone = estimated()["memory_bytes"]
    keys = ["trainer.strategy=fsdp", "trainer.devices=4"]
    sharded = estimated(*keys)["memory_bytes"]
    for part in ("policy: weights", "gradients", "optimiser state"):
        assert sharded[part] == pytest.approx(alone[part] / 4, abs=1)
    assert sharded["gathered layers, embedding and head"] > 0
    assert sharded["gradient buckets (DDP)"] == 0
    capsys.readouterr()
    away = estimated(*keys, "trainer.cpu_offload=true")
    assert away["memory_bytes"]["optimiser state"] == 0
    assert away["host_bytes"] == sum(sharded[part] for part in ("policy: weights", "gradients", "optimiser state"))
    names(capsys.readouterr().out, "each process", "CPU memory")
