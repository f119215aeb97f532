"""Losses against values computed by independent float64 code, loss and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from caldpo.config.conf_dir import conf_dir
from caldpo.types import PairLogps
from tests.shared import SHARED

GOLDEN = SHARED / "golden" / "losses.json"
SETTINGS = sorted(json.loads(GOLDEN.read_text())["expected"]) if GOLDEN.exists() else []


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not GOLDEN.exists():
        pytest.skip("needs golden/losses.json of the shared folder beside the checkout")
    return json.loads(Path(GOLDEN).read_text())


def build_loss(setting: str) -> torch.nn.Module:
    """The module that the configuration builds for ``loss=... loss.key=...``."""
    option, *keys = setting.split()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [f"loss={option}", *(f"loss.{k}" for k in keys)])
    return instantiate(cfg.loss)


def test_the_golden_file_is_read(golden: dict[str, Any]) -> None:
    assert len(SETTINGS) == 36


@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_and_gradients(setting: str, golden: dict[str, Any]) -> None:
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in golden["inputs"].items()}
    for name in ("policy_chosen", "policy_rejected"):
        tensors[name].requires_grad_(True)
    output = build_loss(setting)(PairLogps(**tensors))
    output.loss.sum().backward()
    expected = golden["expected"][setting]
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(output.loss.detach(), torch.tensor(expected["loss"], dtype=torch.float64), **close)
    torch.testing.assert_close(sum(output.terms.values()), output.loss, **close)
    for name in ("policy_chosen", "policy_rejected"):
        want = torch.tensor(expected[f"grad_{name}"], dtype=torch.float64)
        grad = tensors[name].grad
        torch.testing.assert_close(torch.zeros_like(want) if grad is None else grad, want, **close)
