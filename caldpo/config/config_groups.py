"""List the groups of a command, and their options."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig

from caldpo.config.conf_dir import conf_dir

_GLOBAL = re.compile(r"^# *@package +_global_", re.MULTILINE)  # of a file that sets keys of other sections


def options_of(loader: ConfigLoader, group: str) -> list[str]:
    """List the options of a group; none for the key of a section."""
    return loader.get_group_options(group, ObjectType.CONFIG) if "." not in group else []


def groups_of(cfg: DictConfig, loader: ConfigLoader) -> list[str]:
    """List the groups of the command that ``cfg`` was composed for."""
    return [group for group in loader.list_groups("") if group != "hydra" and has_group(cfg, loader, group)]


def has_group(cfg: DictConfig, loader: ConfigLoader, group: str) -> bool:
    """Tell whether the command's defaults choose from the group, or a user's own option changes what they chose."""
    if "/" in group or group in cfg.hydra.runtime.choices or group in _listed(loader, cfg.hydra.job.config_name):
        return True
    folders = [Path(source.path, group) for source in loader.get_sources() if source.scheme() == "file"]
    files = [file for folder in folders if folder.parent != conf_dir() for file in folder.glob("*.yaml")]
    return any(_GLOBAL.search(file.read_text(encoding="utf-8", errors="replace")) for file in files)


@functools.lru_cache(maxsize=1)
def _listed(loader: ConfigLoader, config_name: str) -> set[str]:
    """List the groups with several options at once: a list in the defaults, which Hydra counts as no choice."""
    chosen = loader.compute_defaults_list(config_name, [], RunMode.RUN).defaults
    return {path.rpartition("/")[0] for default in chosen if (path := default.config_path)}
