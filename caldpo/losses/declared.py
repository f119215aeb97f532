"""Name the losses of this project by what they declare: no list of names is kept anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from caldpo.config.conf_dir import conf_dir
from caldpo.losses.base import PreferenceLoss
from caldpo.utils.yaml_io import read_yaml


def losses_taking_unpaired() -> list[str]:
    """List the options of ``loss`` that take rows with one response and a label."""
    return [name for name, loss in _losses() if loss.takes_unpaired]


def _losses() -> Iterator[tuple[str, type[PreferenceLoss]]]:
    for file in sorted((conf_dir() / "loss").glob("*.yaml")):
        module, _, name = str(read_yaml(file).get("_target_", "")).rpartition(".")
        if module:
            yield file.stem, getattr(import_module(module), name)
