"""Compose the configuration of one command under varied overrides, and list its groups and options."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from caldpo.config.conf_dir import conf_dir
from caldpo.config.overrides import parse_overrides

FAULTS = (HydraException, OSError, TypeError, ValueError, yaml.YAMLError)  # what Hydra lets out while composing
_GLOBAL = re.compile(r"^# *@package +_global_", re.MULTILINE)  # of a file that sets keys of other sections


class Composer:
    """Compose with each list of overrides once: its configuration, or its error, is kept and must not be changed."""

    def __init__(self, compose: Callable[[list[str]], DictConfig], loader: ConfigLoader) -> None:
        self._compose, self._loader = compose, loader
        self._outcomes: dict[tuple[str, ...], DictConfig | Exception] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose, or raise one of ``FAULTS``."""
        key = tuple(overrides)
        if key not in self._outcomes:
            try:
                self._outcomes[key] = self._compose(list(overrides))
            except FAULTS as error:
                self._outcomes[key] = error
        outcome = self._outcomes[key]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def compose_or_none(self, overrides: Sequence[str]) -> DictConfig | None:
        """Compose, where values are faulty with the chosen options alone; None where that fails, too."""
        chosen = [o for o in overrides if self.options(o.partition("=")[0].lstrip("+~").partition("@")[0])]
        for texts in (overrides, chosen):
            with contextlib.suppress(*FAULTS):
                return self.compose(texts)
        return None

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parse overrides; skip those that Hydra cannot read."""
        return parse_overrides(self._loader, overrides)

    def options(self, group: str) -> list[str]:
        """List the options of a group; none for the key of a section."""
        return self._loader.get_group_options(group, ObjectType.CONFIG) if "." not in group else []

    def groups(self, cfg: DictConfig) -> list[str]:
        """List the groups of the command that ``cfg`` was composed for."""
        return [group for group in self._loader.list_groups("") if group != "hydra" and self.has_group(cfg, group)]

    def has_group(self, cfg: DictConfig, group: str) -> bool:
        """Tell whether the command's defaults choose from the group, or a user's own option changes what they chose."""
        chosen = (cfg.hydra.runtime.choices, _chosen_in_lists(self._loader, cfg.hydra.job.config_name))
        if "/" in group or any(group in groups for groups in chosen):
            return True
        folders = [Path(source.path, group) for source in self._loader.get_sources() if source.scheme() == "file"]
        files = [file for folder in folders if folder.parent != conf_dir() for file in folder.glob("*.yaml")]
        return any(_GLOBAL.search(file.read_text(encoding="utf-8", errors="replace")) for file in files)


@functools.lru_cache(maxsize=1)
def _chosen_in_lists(loader: ConfigLoader, config_name: str) -> set[str]:
    """List the groups of which the defaults choose several options at once, which Hydra counts as no choice."""
    chosen = loader.compute_defaults_list(config_name, [], RunMode.RUN).defaults
    return {path.rpartition("/")[0] for default in chosen if (path := default.config_path)}
