"""Discover the suites, and choose those of the runs' configurations where the command line names none.

A suite is a yaml in ``suite/`` of ``conf`` or of a ``--config-dir``; no list of names is kept elsewhere. No heavy
imports here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.config.did_you_mean import suggest
from caldpo.config.find_runs import find_runs
from caldpo.config.validation import Problem
from caldpo.errors import CaldpoError
from caldpo.utils.yaml_io import read_yaml


def known_suites(*config_dirs: Path) -> list[str]:
    """List the options of ``suite``: those of this project, and those in other folders of configurations."""
    files = (file for folder in (conf_dir(), *config_dirs) for file in sorted(folder.glob("suite/*.yaml")))
    return list(dict.fromkeys(file.stem for file in files))


def find_unknown_suites(cfg: DictConfig) -> Iterator[Problem]:
    """Find the names in ``suites`` of a training run that its search path has no configuration of."""
    sources = cfg.hydra.runtime.config_sources
    known = known_suites(*(Path(source.path) for source in sources if source.schema == "file" and source.path))
    suites = OmegaConf.select(cfg, "suites")
    for name in suites if isinstance(suites, Sequence) and not isinstance(suites, str) else ():
        if isinstance(name, str) and name not in known:
            yield Problem(
                "suites",
                name,
                f"no such suite{suggest(name, known)}",
                f"choose among {', '.join(known)}; a suite of your own is in suite/ of the folder of --config-dir",
            )


def with_default_suites(overrides: Sequence[str], multirun: bool, config_dir: str | None = None) -> list[str]:
    """Add the suites that the runs' configurations name, if the overrides name a run and no suite.

    Only names are taken from a run's folder, and only those of known options: this project and ``config_dir`` define
    what an option builds. Others are left out with a message. ``judge`` is left out as well, unless the overrides set
    keys of it: it needs an endpoint.
    """
    overrides = list(overrides)
    if any(override.lstrip("+~").partition("=")[0].partition("@")[0] == "suite" for override in overrides):
        return overrides
    run = next((text.partition("=")[2].strip("'\"") for text in overrides if text.startswith("run=")), None)
    names = list(dict.fromkeys(_named_by_runs(Path(run).expanduser()))) if run else []
    known = known_suites(*([] if config_dir is None else [Path(config_dir)]))
    suites = []
    for name in names:
        reason = None
        if name not in known:
            reason = "no such option here; --config-dir=FOLDER adds some"
        elif name == "judge" and not any(override.lstrip("+").startswith("judge.") for override in overrides):
            reason = "it needs judge.base_url=URL judge.model=NAME"
        if reason is None:
            suites.append(name)
        else:
            print(f"suite {name} of this run is left out: {reason}", file=sys.stderr)
    if not any(name in known for name in names):
        return overrides  # the command's own default applies
    return [*overrides, f"suite=[{','.join(suites)}]"]  # empty for a judge without endpoint, which the command refuses


def _named_by_runs(folder: Path) -> Iterator[str]:
    """Yield the suites of every run at or below a folder; nothing where that cannot be read."""
    try:
        runs = find_runs(folder, key="run")
    except CaldpoError:
        return  # the command itself reports it
    for run in runs:
        try:
            config = read_yaml(run / "config.yaml")
        except (OSError, ValueError):
            continue
        suites = config.get("suites") if isinstance(config, dict) else None
        for name in suites if isinstance(suites, list) else ():
            if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_]+", name):
                yield name
