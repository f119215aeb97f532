"""Signatures read from source text: the same as Python's own, without an import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pytorch_lightning import callbacks
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from caldpo.config.bounds import Positive
from caldpo.config.signatures import Parameter, read_signature, resolved_hints
from caldpo.config.value_checks import describe, is_config_type, is_section
from tests.helpers.messages import refused


def parameters(target: str) -> dict[str, Parameter]:
    signature = read_signature(target)
    assert signature
    return dict(signature.parameters)


@pytest.mark.usefixtures("package")
class TestReading:
    def test_a_class(self) -> None:
        signature = read_signature("caldpo.losses.f.F")
        assert signature is not None
        assert signature.open  # **more
        found = signature.parameters
        # "only" is positional: no yaml key can reach it
        assert list(found) == ["policy", "beta", "kind", "rate", "inner", "message", "maybe"]
        assert found["beta"].annotation == Positive
        assert found["kind"].annotation == Literal["js", "kl"]
        assert describe(found["rate"].annotation) == describe(Annotated[float, Field(ge=0, lt=0.5)])
        assert found["maybe"].annotation == int | None
        assert is_section(found["inner"].annotation)
        assert [name for name, p in found.items() if p.required] == ["beta"]
        assert [name for name, p in found.items() if not p.checked] == ["policy", "message"]

    def test_inherited_constructors(self) -> None:
        assert list(parameters("caldpo.losses.f.Inherits")) == ["beta"]
        bare, foreign = (
            read_signature("caldpo.losses.f.Nothing"),
            read_signature("caldpo.losses.base.Foreign"),
        )
        assert bare is not None
        assert (dict(bare.parameters), bare.open) == ({}, False)
        assert foreign is not None
        assert foreign.open  # nobody knows what it takes

    def test_dataclasses_add_up(self) -> None:
        found = parameters("caldpo.losses.f.Child")
        assert {name: p.has_default for name, p in found.items()} == {"a": False, "b": True, "d": False}
        assert found["b"].annotation == list[str]

    def test_functions_and_methods(self) -> None:
        assert {name: p.has_default for name, p in parameters("caldpo.losses.f.build").items()} == {
            "x": False,
            "y": True,
            "z": True,
        }
        assert list(parameters("caldpo.losses.f.F.from_name")) == ["name", "size"]
        assert list(parameters("caldpo.losses.f.F.make")) == ["name"]

    def test_targets_that_are_not_there(self) -> None:
        with refused("did you mean Inherits", key="_target_", value="caldpo.losses.f.Inherit"):
            read_signature("caldpo.losses.f.Inherit")
        with refused(key="_target_", value="caldpo.nowhere.F"):
            read_signature("caldpo.nowhere.F")


def test_other_packages_are_left_to_python() -> None:
    assert read_signature("torch.optim.AdamW") is None


def test_lightnings_are_read_where_they_are_defined() -> None:
    found = parameters("pytorch_lightning.callbacks.EarlyStopping")
    assert list(found) == list(inspect.signature(EarlyStopping).parameters)
    assert (found["patience"].annotation, found["stopping_threshold"].annotation) == (int, float | None)
    assert found["mode"].annotation == Literal["min", "max"]
    for mode in ("min", "max"):
        EarlyStopping("val/loss", mode=mode)
    with pytest.raises(MisconfigurationException):
        EarlyStopping("val/loss", mode="auto")


def test_every_callback_of_lightnings_takes_what_its_source_says() -> None:
    for name in callbacks.__all__:
        signature = read_signature(f"pytorch_lightning.callbacks.{name}")
        assert signature is not None
        assert signature.parameters.keys() <= inspect.signature(getattr(callbacks, name)).parameters.keys()


@pytest.mark.parametrize(
    "target",
    [
        "caldpo.losses.cal_dpo.CalDPO",
        "caldpo.losses.f_dpo.FDPO",
        "caldpo.losses.sft.SFT",
        "caldpo.models.hub_model.HubModel",
        "caldpo.run_settings.RunSettings",
        "caldpo.optim.torch_optimizers.AdamW",
    ],
)
def test_agrees_with_the_imported_signature(target: str) -> None:
    """What ``ast`` reads is what ``inspect`` sees."""
    module, _, name = target.rpartition(".")
    imported: Any = getattr(__import__(module, fromlist=[name]), name)
    found = parameters(target)
    live = dict(inspect.signature(imported).parameters)
    assert list(found) == list(live)
    assert [p.has_default for p in found.values()] == [p.default is not inspect.Parameter.empty for p in live.values()]
    hints = resolved_hints(imported.__init__)
    for name, parameter in found.items():
        if parameter.checked and not is_section(parameter.annotation):
            assert describe(parameter.annotation) == describe(hints[name]), name
        elif not parameter.checked:
            assert not is_config_type(hints[name]), name


def test_reading_imports_nothing_of_the_target() -> None:
    code = (
        "import sys; from caldpo.config.signatures import read_signature;"
        "read_signature('caldpo.losses.cal_dpo.CalDPO');"
        "print('torch' in sys.modules, 'caldpo.losses' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
