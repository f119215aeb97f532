"""The table of sources in docs/losses.md: every loss, every default of its yaml, every range of its search space."""

from __future__ import annotations

import re
from typing import Any

import pytest
from omegaconf import OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.losses.search_space import Choices, Range
from tests.helpers.documents import DOCUMENTS, ROOT
from tests.losses.test_losses import load

pytestmark = pytest.mark.skipif(not DOCUMENTS, reason="an installed wheel has no pages")

YAMLS = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((conf_dir() / "loss").glob("*.yaml"))
}


def table() -> dict[str, list[str]]:
    """Cells after the loss's name, by loss."""
    section = (ROOT / "docs/losses.md").read_text().split("\n## Sources\n")[1].split("\n## ")[0]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")
    ]
    return {re.sub("`", "", name): cells for name, *cells in lines}


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_loss_has_a_row() -> None:
    assert table().keys() == YAMLS.keys()


@pytest.mark.parametrize("name", YAMLS)
def test_the_row_has_the_values_of_yaml_and_code(name: str) -> None:
    defaults, searched, source = table()[name]
    keys = {key: value for key, value in YAMLS[name].items() if key != "_target_" and value is not None}
    assert defaults == ", ".join(f"`{key}` {shown(value)}" for key, value in keys.items())
    assert searched == ", ".join(f"`{key}` {values(space)}" for key, space in load(name).search_space.items())
    assert source


def values(space: Range | Choices) -> str:
    if isinstance(space, Range):
        return f"{space.low:g} to {space.high:g}"
    return " ".join(shown(value) for value in space.values)
