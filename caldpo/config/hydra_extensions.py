"""Resolvers of the yamls, and the settings of a loss in one experiment or model, as Hydra's options."""

from __future__ import annotations

import functools
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.config.run_dir import RUN_NAME, run_name
from caldpo.utils.yaml_io import read_yaml

PER_LOSS = "per_loss"  # a group of Hydra's and the file that has its options


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
    options = {}
    for recipe, losses in read_yaml(conf_dir() / f"{PER_LOSS}.yaml").items():
        for loss, keys in losses.items():
            nested = OmegaConf.create()
            for key, value in keys.items():
                OmegaConf.update(nested, key, value)
            options[f"{recipe}_{loss}"] = OmegaConf.to_container(nested, resolve=False)
    return options  # type: ignore[return-value]  # to_container of a mapping is one


def _full_or_adapter(full: Any, adapter: Any, *, _root_: DictConfig) -> Any:
    """Choose the first value where all weights of the policy are trained, the second where an adapter is."""
    target = OmegaConf.select(_root_, "adapter._target_")
    return full if target is None or str(target).endswith(".NoAdapter") else adapter
