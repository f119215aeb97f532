"""Settings that ZeRO-2 refuses before weights load; DeepSpeed need not be installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

from caldpo.distributed.deepspeed_config import engine_config, require_dtype
from caldpo.lightning_trainer import TrainerSettings
from tests.helpers.messages import refused


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec("torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)


def settings(**more: Any) -> TrainerSettings:
    return TrainerSettings(strategy="deepspeed_stage_2", **more)


def test_without_deepspeed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    remedy = "pip install 'caldpo[deepspeed]'"
    with refused("DeepSpeed", key="trainer.strategy", value="deepspeed_stage_2", remedy=remedy):
        settings().check()


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"precision": "16-mixed"}, "trainer.precision"),
        ({"precision": "64-true"}, "trainer.precision"),
        ({"compile": True}, "trainer.compile"),
    ],
)
def test_unsupported_settings_are_refused(more: dict[str, Any], key: str, installed: None) -> None:
    with refused("deepspeed_stage_2", key=key):
        settings(**more).check()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("cpu_offload", [False, True])
def test_supported_settings_are_accepted(precision: Any, cpu_offload: bool, installed: None) -> None:
    settings(precision=precision, cpu_offload=cpu_offload).check()


def test_deepspeed_neither_accumulates_nor_clips_nor_skips() -> None:
    for offload in (False, True):
        config = engine_config(half=True, offload=offload)
        assert config["gradient_accumulation_steps"] == 1
        assert config["gradient_clipping"] == 0
        assert config["bf16"] == {"enabled": True, "check_grad_overflow": False}
        assert ("offload_optimizer" in config["zero_optimization"]) == offload


def test_trainable_weights_of_another_dtype_are_refused_and_frozen_ones_are_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    for dtype, other in ((torch.float32, "bfloat16"), (torch.bfloat16, "float32")):
        with refused(other):
            require_dtype(model, dtype)
    model[1].requires_grad_(False)
    require_dtype(model, torch.float32)
