"""Complete a configuration that Hydra's ``compose`` made: Hydra leaves its own section out, which a run reads.

Of what the section says, the folder, the launcher and the like are the project's defaults; which options were chosen is
told by the targets of the sections; what was typed is not known.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from caldpo.config.conf_dir import conf_dir
from caldpo.config.hydra_session import PER_LOSS, hydra_session, per_loss_options
from caldpo.utils.yaml_io import flatten, read_yaml


def with_hydra_section(cfg: DictConfig, command: str) -> DictConfig:
    """Return a copy with Hydra's section; one that has it (``return_hydra_config=True``) as it is.

    Prints a note where settings of ``conf/per_loss.yaml`` were left out, as Hydra does in a program that composes
    before it imports caldpo.
    """
    cfg = copy.deepcopy(cfg)
    if "hydra" in cfg:
        return cfg
    with hydra_session(command) as session:
        default = session.compose([], RunMode.RUN)
    choices = default.hydra.runtime.choices
    for group in [group for group in choices if "/" not in group and group != PER_LOSS]:
        options = chosen_options(cfg, group)
        choices[group] = options[0] if len(options) == 1 else None  # of several with one target it may be any
    if choices.loss is None:  # its name in reports
        choices.loss = str(OmegaConf.select(cfg, "loss._target_")).rpartition(".")[2]
    choices[PER_LOSS] = f"{choices.model}_{choices.loss}"
    _note_left_out(cfg, choices[PER_LOSS], str(choices.loss))
    with open_dict(cfg):
        cfg.hydra = default.hydra
    return cfg


def chosen_options(cfg: DictConfig, group: str) -> list[str]:
    """List the options of a group that a section may be made of: the project's yamls with its target.

    Options of a group that takes several have a section each, by their names: ``logger.wandb``.
    """
    folder = conf_dir() / group
    base = _read(folder / "base.yaml", group)

    def made_of(option: str, section: Mapping[str, Any]) -> bool:
        target = section.get("_target_")
        own = OmegaConf.select(cfg, f"{group}._target_") or OmegaConf.select(cfg, f"{group}.{option}._target_")
        return target is not None and target == own

    options = [file for file in sorted(folder.glob("*.yaml")) if file.stem != "base"]
    return [file.stem for file in options if made_of(file.stem, base | _read(file, group))]


def _read(file: Path, group: str) -> dict[str, Any]:
    """Read the section of a group that a yaml sets; empty where there is no such file."""
    content = read_yaml(file) if file.is_file() else {}
    section = content.get(group, content)  # a file that sets several sections has the group's below its name
    return dict(section) if isinstance(section, Mapping) else {}


def _note_left_out(cfg: DictConfig, option: str, loss: str) -> None:
    wanted = flatten(per_loss_options().get(option, {}))
    if not wanted:
        return
    plain = {f"loss.{key}": value for key, value in read_yaml(conf_dir() / "loss" / f"{loss}.yaml").items()}
    left_out = [key for key in wanted if key in plain and OmegaConf.select(cfg, key) == plain[key] != wanted[key]]
    if left_out:
        settings = ", ".join(f"{key}={wanted[key]}" for key in left_out)
        print(
            f"note: conf/per_loss.yaml has {settings} for this model and loss, and the configuration has the loss's own"
            " default: import caldpo.training_command before Hydra composes, or compose by caldpo.compose",
            file=sys.stderr,
        )
