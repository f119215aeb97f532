"""Losses against values computed by independent code, loss and gradients: the committed table, and the shared one."""

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
from tests.helpers.shared import SHARED
from tests.losses.golden_values import FORMULAS, VALUES

TABLE = json.loads(VALUES.read_text(encoding="utf-8"))
# settings that each shared table has
SHARED_TABLES = {SHARED / "golden" / "losses.json": 36, SHARED / "golden" / "losses_more.json": 44}
SHARED_SETTINGS = [
    (path, setting)
    for path in SHARED_TABLES
    if path.exists()
    for setting in sorted(json.loads(path.read_text())["expected"])
    if (conf_dir() / "loss" / f"{setting.split()[0]}.yaml").exists()
]
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
INPUTS = (
    *("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"),
    *("chosen_tokens", "rejected_tokens", "score_chosen", "score_rejected"),
)
DIFFERENTIATED = ("policy_chosen", "policy_rejected")


def build_loss(setting: str) -> torch.nn.Module:
    """Build the loss that ``loss=... loss.key=...`` configures."""
    option, *keys = setting.split()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [f"loss={option}", *(f"loss.{k}" for k in keys)])
    return instantiate(cfg.loss)


def check(setting: str, inputs: dict[str, list[float]], loss: list[float], gradients: dict[str, list[float]]) -> None:
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in inputs.items()}
    for name in DIFFERENTIATED:
        tensors[name].requires_grad_(True)
    output = build_loss(setting)(PairLogps(**tensors))
    output.loss.sum().backward()
    torch.testing.assert_close(output.loss.detach(), torch.tensor(loss, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(sum(output.terms.values()), output.loss, **CLOSE)
    for name in DIFFERENTIATED:
        expected, gradient = torch.tensor(gradients[name], dtype=torch.float64), tensors[name].grad
        torch.testing.assert_close(torch.zeros_like(expected) if gradient is None else gradient, expected, **CLOSE)


def test_every_formula_is_in_the_table_and_every_loss_has_one() -> None:
    assert TABLE["expected"].keys() == FORMULAS.keys()
    assert {setting.split()[0] for setting in FORMULAS} >= {path.stem for path in (conf_dir() / "loss").glob("*.yaml")}


@pytest.mark.parametrize("setting", FORMULAS)
def test_loss_and_gradients(setting: str) -> None:
    inputs: dict[str, Any] = dict(zip(INPUTS, zip(*TABLE["pairs"], strict=True), strict=True))
    expected = TABLE["expected"][setting]
    check(setting, inputs, expected["loss"], expected)


@pytest.mark.parametrize("path", SHARED_TABLES, ids=lambda path: path.name)
def test_the_shared_table_is_complete(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"needs golden/{path.name} of the shared folder beside the checkout")
    settings = json.loads(path.read_text())["expected"]
    assert len(settings) == SHARED_TABLES[path]
    missing = {setting.split()[0] for setting in settings} - {setting.split()[0] for _, setting in SHARED_SETTINGS}
    assert not missing, f"{path.name} has settings of losses without a yaml: {', '.join(sorted(missing))}"


@pytest.mark.parametrize(("path", "setting"), SHARED_SETTINGS, ids=[setting for _, setting in SHARED_SETTINGS])
def test_loss_and_gradients_of_the_shared_table(path: Path, setting: str) -> None:
    table = json.loads(path.read_text())
    expected = table["expected"][setting]
    check(setting, table["inputs"], expected["loss"], {name: expected[f"grad_{name}"] for name in DIFFERENTIATED})
