"""Hydra by its public interface, initialised for one command, with the resolvers and the options of this project."""

from __future__ import annotations

import contextlib
import functools
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser  # Hydra's own options: no public name lists them
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.config.run_dir import RUN_NAME, run_name
from caldpo.utils.yaml_io import read_yaml

HYDRA_VERSION = "1.3"
PER_LOSS = "per_loss"  # a group of Hydra's and the file that has its options


class ConfigDirPlugin(SearchPathPlugin):
    """Add the folder of ``--config-dir`` after the project's own; ``hydra.searchpath`` would not list its options."""

    folders: ClassVar[Sequence[Path]] = ()  # of the session that begins: Hydra makes the plugin itself

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append(provider="command-line", path=f"file://{folder}")


class HydraSession:
    """Compose, run and show the primary configuration ``config_name`` by an initialised Hydra."""

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name
        self._hydra: Any = GlobalHydra.instance().hydra
        self.loader: ConfigLoader = GlobalHydra.instance().config_loader()

    def compose(self, overrides: Sequence[str], mode: RunMode, *, refuse_sweeps: bool = True) -> DictConfig:
        """Compose the configuration of a run, or of a sweep as a whole, with Hydra's own section.

        As a sweep, options that are chosen by several values are left out; ``refuse_sweeps`` refuses several for a run.
        """
        return self.loader.load_configuration(
            self.config_name, list(overrides), mode, validate_sweep_overrides=refuse_sweeps
        )

    def run(self, task: Callable[[DictConfig], Any], overrides: Sequence[str], mode: RunMode) -> None:
        """Run a task once, or once for each run of a sweep."""
        start = self._hydra.multirun if mode == RunMode.MULTIRUN else self._hydra.run
        start(config_name=self.config_name, task_function=task, overrides=[*overrides, f"hydra.mode={mode.name}"])

    def show(self, args: Namespace, parser: ArgumentParser) -> None:
        """Print what ``--cfg``, ``--info``, ``--hydra-help`` or ``--shell-completion`` ask for."""
        if args.cfg:
            self._hydra.show_cfg(
                self.config_name, args.overrides, cfg_type=args.cfg, package=args.package, resolve=args.resolve
            )
        elif args.info:
            self._hydra.show_info(args.info, config_name=self.config_name, overrides=args.overrides)
        elif args.hydra_help:
            self._hydra.hydra_help(config_name=self.config_name, args_parser=parser, args=args)
        else:
            self._hydra.shell_completion(config_name=self.config_name, overrides=args.overrides)


@contextlib.contextmanager
def hydra_session(
    config_name: str, *, job_name: str | None = None, conf: Path | None = None, extra: Sequence[Path] = ()
) -> Iterator[HydraSession]:
    """Initialise Hydra until the context ends, then restore the one of the calling program, if any.

    ``conf`` is a folder of configurations in place of the project's, ``extra`` are some with further options.
    """
    register_with_hydra()
    Plugins.instance().register(ConfigDirPlugin)
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    ConfigDirPlugin.folders = [folder.absolute() for folder in extra]
    try:
        with initialize_config_dir(
            str((conf or conf_dir()).absolute()), job_name=job_name or config_name, version_base=HYDRA_VERSION
        ):
            yield HydraSession(config_name)
    finally:
        ConfigDirPlugin.folders = ()
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


@contextlib.contextmanager
def outer_config_kept() -> Iterator[None]:
    """Restore the configuration that Hydra holds for the calling program, or none, once the context ends."""
    outer = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = outer


def options_parser(program: str) -> ArgumentParser:
    """Make the parser of Hydra's own options."""
    parser: ArgumentParser = get_args_parser()
    parser.prog = program
    return parser


def register_with_hydra() -> None:
    """Register ``${run_name:...}``, ``${full_or_adapter:...}`` and the options of ``per_loss``."""
    OmegaConf.register_new_resolver(
        RUN_NAME, lambda overrides, excluded=(): run_name(list(overrides), list(excluded)), replace=True
    )
    OmegaConf.register_new_resolver("full_or_adapter", _full_or_adapter, replace=True)
    store = ConfigStore.instance()
    for option, settings in per_loss_options().items():
        store.store(group=PER_LOSS, name=option, node=settings, package="_global_", provider="caldpo")


@functools.cache
def per_loss_options() -> dict[str, dict[str, Any]]:
    """Read the settings of each option: ``{"tldr_pythia_dpo": {"loss": {"beta": 0.5}}}``.

    ``per_loss.yaml`` has them by experiment or model and by loss, with keys as on the command line.
    """
    options: dict[str, dict[str, Any]] = {}
    for recipe, losses in read_yaml(conf_dir() / f"{PER_LOSS}.yaml").items():
        for loss, keys in losses.items():
            nested: dict[str, Any] = {}
            for key, value in keys.items():
                *sections, name = key.split(".")
                functools.reduce(lambda section, part: section.setdefault(part, {}), sections, nested)[name] = value
            options[f"{recipe}_{loss}"] = nested
    return options


def _full_or_adapter(full: Any, adapter: Any, *, _root_: DictConfig) -> Any:
    """Choose the first value where all weights of the policy are trained, the second where an adapter is."""
    target = OmegaConf.select(_root_, "adapter._target_")
    return full if target is None or str(target).endswith(".NoAdapter") else adapter
