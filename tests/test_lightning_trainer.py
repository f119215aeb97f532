"""What the trainer's settings set beyond Lightning's own arguments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.lightning_trainer import FetchOnException, TrainerSettings
from caldpo.models.compilation import CompiledLayers
from tests.helpers.messages import refused


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("wanted", ["high", "medium", "highest"])
def test_matmul_precision_is_set_by_each_run(wanted: str, tmp_path: Path) -> None:
    """Also back to the default: a process that runs a sweep keeps what an earlier run set."""
    torch.set_float32_matmul_precision("medium")
    TrainerSettings(progress_bar=False, matmul_precision=wanted).build(tmp_path, [], [])
    assert torch.get_float32_matmul_precision() == wanted


def test_the_default_is_exact(tmp_path: Path) -> None:
    torch.set_float32_matmul_precision("medium")
    TrainerSettings(progress_bar=False).build(tmp_path, [], [])
    assert torch.get_float32_matmul_precision() == "highest"


def test_compilation_is_an_option(tmp_path: Path) -> None:
    def kinds(**keys: Any) -> set[type]:
        return {type(c) for c in TrainerSettings(progress_bar=False, **keys).build(tmp_path, [], []).callbacks}

    assert CompiledLayers not in kinds()
    assert CompiledLayers in kinds(compile=True)
    assert FetchOnException in kinds()


@pytest.mark.parametrize(
    ("key", "value"), [("metrics_sync_every", 0), ("matmul_precision", "tf32"), ("compile", "yes")]
)
def test_bad_values_are_named(key: str, value: Any) -> None:
    with refused(key=key, value=value):
        TrainerSettings(**{key: value})
