"""Options whose packages are not installed are refused before anything heavy is imported, and leave no folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import caldpo
from caldpo.config.extras import _PACKAGES, EXTRAS
from caldpo.train import main
from tests.helpers.command import call
from tests.helpers.messages import names, refused


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    optional, find = {package for packages in _PACKAGES.values() for package in packages}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in optional else find(name))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("group", "option"), [at for at, extra in EXTRAS.items() if extra in _PACKAGES])
def test_its_extra_is_named(group: str, option: str) -> None:
    with pytest.raises(caldpo.CaldpoError) as caught:
        caldpo.compose(["loss=dpo", "model=tiny", f"{group}={option}"])
    names(
        str(caught.value), f"{group}={option}: ", "is not installed", f"pip install 'caldpo[{EXTRAS[group, option]}]'"
    )


def test_of_several_trackers_each_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(main, ["loss=dpo", "model=tiny", "logger=[csv,tensorboard,mlflow]"], 2)
    names(
        capsys.readouterr().err, "2 problems", "logger=tensorboard: tensorboard is not", "logger=mlflow: mlflow is not"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_of_another_machine_needs_none() -> None:
    assert caldpo.compose(["loss=dpo", "model=tiny", "adapter=qlora", "dry_run=true"]).adapter.bits == 4
    with refused("peft is not installed", key="adapter", value="lora"):
        caldpo.compose(["loss=dpo", "model=tiny", "adapter=lora"])
