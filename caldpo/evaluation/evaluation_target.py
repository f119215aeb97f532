"""Read the policy to evaluate from a run's folder and configuration, or from ``model.path`` with chosen pairs."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from caldpo.checkpointing.manifest import checkpoint_folders
from caldpo.config.cache_dirs import CACHE, with_cache_dirs
from caldpo.config.find_runs import find_runs
from caldpo.config.summary_file import read_summary
from caldpo.config.trusted_config import announce_foreign, require_own_code
from caldpo.config.validation import check_config
from caldpo.errors import CaldpoError
from caldpo.evaluation.suite_base import FOLDER
from caldpo.resume.config_diff import CONFIG, read_config
from caldpo.resume.pins import DATA_COMMIT, MODEL_COMMIT
from caldpo.security.paths import require_unlinked
from caldpo.security.secrets import redact_text

SECTIONS = ("model", "adapter", "reference", "data")  # of a run's configuration that an evaluation builds


@dataclass(frozen=True)
class Target:
    """One policy to evaluate, before anything of it is loaded."""

    name: str  # as the terminal shows it
    folder: Path  # that ``evaluation/`` is written into
    run: Path | None  # the run's folder; None for a model
    # sections of :data:`SECTIONS`, and ``reward_beta``, ``trainer``, ``callbacks`` of a run
    config: Mapping[str, Any] = field(repr=False)
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)
    own_data: bool = True  # the pairs that the run itself held out, not those of ``data=``

    def checkpoints(self) -> dict[int, Path]:
        """Return the run's checkpoints by optimiser step, in their order."""
        return {} if self.run is None else checkpoint_folders(self.run)

    @property
    def steps(self) -> int | None:
        """Optimiser steps of the run; None for a model, or where the run did not finish."""
        return self.summary.get("steps")

    @property
    def implicit_reward_beta(self) -> float | None:
        """Reward per nat of log-ratio by the derivation of the run's own loss; None where the loss has none.

        Unlike ``reward_beta``, which is one unit for all runs.
        """
        beta: Any = self.summary.get("implicit_reward_beta")
        return float(beta) if type(beta) in (int, float) and 0 < beta < math.inf else None

    def of_run(self, key: str, default: Any) -> Any:
        """Return a value of the run's configuration, by its dotted key (``trainer.precision``)."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def find_folders(cfg: DictConfig) -> list[Path | None]:
    """List the run folders at or below ``cfg.run``; a single None stands for the model of ``cfg.model``."""
    if cfg.run is None:
        return [None]
    folders = find_runs(_root(cfg), key="run")
    if cfg.output is not None and len(folders) > 1:
        raise CaldpoError(
            f"run={cfg.run} holds {len(folders)} runs, whose results would overwrite one another",
            key="output",
            value=cfg.output,
            remedy="leave it out: results go into each run's own folder",
        )
    return [*folders]


def name_of(cfg: DictConfig, folder: Path | None) -> str:
    """Name the policy in this folder for the terminal."""
    if folder is None:
        return str(cfg.model.path)
    return folder.name if folder == _root(cfg) else str(folder.relative_to(_root(cfg)))


def read_target(cfg: DictConfig, folder: Path | None) -> Target:
    """Read the run in this folder, or the model that ``cfg`` names.

    Raises:
        CaldpoError: the run's configuration is missing, damaged, of another version, or would run foreign code.
    """
    return _of_model(cfg) if folder is None else _of_run(folder, cfg)


def _root(cfg: DictConfig) -> Path:
    return Path(cfg.run).expanduser()


def _of_run(folder: Path, cfg: DictConfig) -> Target:
    file, config = folder / CONFIG, read_config(folder)
    if config is None:
        raise CaldpoError("the run ended before it wrote its configuration", key=str(file))
    summary = read_summary(folder)
    _pin_revisions(config, summary)
    require_unlinked(folder, FOLDER)
    if cfg.allow_untrusted_code:
        announce_foreign(config, SECTIONS, file)
    else:
        require_own_code(config, SECTIONS, file)
    config, replaced = with_cache_dirs(config, cfg.get("cache") or CACHE)
    replaced.pop("reference.cache", None)  # no evaluation reads it
    for key, place in replaced.items():
        message = f"note: {file} sets {key} to {redact_text(place)}, which is ignored: set cache=FOLDER to use it"
        print(message, file=sys.stderr)
    own_data = cfg.get("data") is None
    if not own_data:
        config["data"] = OmegaConf.to_container(cfg.data, resolve=True)
    _check_sections(config, file)
    output = folder if cfg.output is None else Path(cfg.output)
    return Target(name_of(cfg, folder), output, folder, config, summary, own_data)


def _pin_revisions(config: dict[str, Any], summary: Mapping[str, Any]) -> None:
    """Set the revisions of model and data to the commits that the run began with."""
    data = config.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    for key, section in ((MODEL_COMMIT, config.get("model")), (DATA_COMMIT, source)):
        commit = summary.get(key)
        if isinstance(commit, str) and isinstance(section, dict) and "revision" in section:
            section["revision"] = commit


def _of_model(cfg: DictConfig) -> Target:
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hub = {"_target_": "caldpo.models.hub_model.HubModel", "trust_remote_code": cfg.allow_untrusted_code}
    config = {
        "model": plain["model"] | hub,
        "adapter": {"_target_": "caldpo.models.adapters.NoAdapter"},
        "reference": None,
        "data": plain.get("data"),
    }
    # the full path, since the last part alone is "policy" for every run
    folder_name = re.sub(r"[^A-Za-z0-9=._,+-]+", "-", str(cfg.model.path)).strip("-.")
    output = Path("outputs/evaluation") / folder_name if cfg.output is None else Path(cfg.output)
    return Target(name_of(cfg, None), output, None, config)


def _check_sections(config: Mapping[str, Any], file: Path) -> None:
    """Check the sections against today's signatures: the run may be of another version, or written by hand."""
    missing = [name for name in SECTIONS if not isinstance(config.get(name), dict)]
    if missing:
        raise CaldpoError(
            f"has no section {', '.join(missing)}", key=str(file), remedy="name the folder of a training run"
        )
    try:
        check_config(OmegaConf.create({name: config[name] for name in SECTIONS}))
    except CaldpoError as error:
        raise CaldpoError(
            f"does not fit this version of caldpo: {error.key + ': ' if error.key else ''}{error.message}",
            key=str(file),
            remedy="evaluate the run with the version that trained it (named in its summary.json)",
        ) from error
