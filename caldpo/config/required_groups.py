"""Groups of options that a command cannot do without, and that a command line has taken out. No heavy imports."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from caldpo.config.validation import Problem

NEEDED = ("loss", "reference", "adapter", "optim", "trainer", "logger", "callbacks", "data", "model")  # by a training
_INSTEAD = {
    "logger": "choose logger=none: metrics.csv alone is written then",
    "adapter": "choose adapter=none: all weights are trained then",
    "callbacks": "take out single ones, such as ~callbacks.samples",
}


def find_missing_groups(cfg: DictConfig) -> Iterator[Problem]:
    """A problem for each group that a training needs and the configuration does not have."""
    for group in NEEDED:
        try:
            there = OmegaConf.select(cfg, group)
        except OmegaConfBaseException:
            continue  # reported where it stands
        if there is None:
            yield taken_out(group)


def taken_out(group: str) -> Problem:
    """What to say of a group that was taken out."""
    remedy = _INSTEAD.get(group, f"leave ~{group} out, and choose an option by {group}=NAME")
    return Problem(group, None, "this group was taken out, and a run needs an option of it", remedy)
