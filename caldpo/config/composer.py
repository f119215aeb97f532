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
from omegaconf import DictConfig

from caldpo.config.conf_dir import conf_dir, groups_of_defaults
from caldpo.config.overrides import parse_overrides
from caldpo.utils.yaml_io import SAFE_LOADER

FAULTS = (HydraException, OSError, TypeError, ValueError, yaml.YAMLError)  # what Hydra lets out while composing
_GLOBAL = re.compile(r"^# *@package +_global_", re.MULTILINE)  # of a file that sets keys of other sections
# Of an option that sets, or chooses, more than the section of its group.
_BEYOND = re.compile(r"^# *@package|^ *- *(?:override +)?/", re.MULTILINE)
_NAME = re.compile(r"[\w-]+(?=\s*:)")


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
        return [group for group in self._all_groups if group != "hydra" and self.has_group(cfg, group)]

    def has_group(self, cfg: DictConfig, group: str) -> bool:
        """Tell whether the command's defaults choose from the group, or a user's own option changes what they chose."""
        if "/" in group or group in cfg.hydra.runtime.choices:
            return True
        if group in _default_groups(self._loader, cfg.hydra.job.config_name):
            return True
        folders = [folder / group for folder in _folders(self._loader) if folder != conf_dir()]
        files = [file for folder in folders for file in folder.glob("*.yaml")]
        return any(_GLOBAL.search(_text(file)) for file in files)

    def may_depend(self, text: str, choice: str) -> bool:
        """Tell whether the ``choice`` of an option (``loss=dpo``) may decide if the override ``text`` is a good one."""
        key, group = (override.partition("=")[0].lstrip("+~").partition("@")[0] for override in (text, choice))
        if "." not in key:
            return False
        files = [file for folder in _folders(self._loader) for file in (folder / group).glob("*.yaml")]
        beyond = any(_BEYOND.search(_text(file)) for file in files) and not self.is_in_no_file(key)
        return beyond or key.startswith(f"{group.replace('/', '.')}.")

    def is_in_no_file(self, key: str) -> bool:
        """Tell whether a part of a dotted key occurs in no file of the configuration: then it is most likely unknown.

        Hydra's own section is made of no files, and the places in a list have no names.
        """
        parts = re.split(r"[./]", key)
        return parts[0] != "hydra" and not any(map(str.isdecimal, parts)) and not _names(self._loader).issuperset(parts)

    @functools.cached_property
    def _all_groups(self) -> list[str]:
        return self._loader.list_groups("")


@functools.lru_cache(maxsize=1)  # each job of a sweep has a composer, all of them one loader
def _names(loader: ConfigLoader) -> frozenset[str]:
    files = [file for folder in _folders(loader) for file in folder.rglob("*.yaml")]
    return frozenset(name for file in files for name in (file.parent.name, *_NAME.findall(_text(file))))


@functools.lru_cache(maxsize=1)
def _default_groups(loader: ConfigLoader, config_name: str) -> set[str]:
    """List the groups in the defaults of a command and its bases; of several options Hydra counts none as chosen."""
    groups, bases = set[str](), [config_name]
    for base in bases:  # which grows meanwhile
        for file in [file for folder in _folders(loader) if (file := folder / f"{base}.yaml").is_file()]:
            config = yaml.load(_text(file), SAFE_LOADER) or {}
            groups.update(groups_of_defaults(config))
            bases += [name for name in config.get("defaults", ()) if isinstance(name, str) and name not in bases]
    return groups


def _folders(loader: ConfigLoader) -> list[Path]:
    return [Path(source.path) for source in loader.get_sources() if source.scheme() == "file"]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
