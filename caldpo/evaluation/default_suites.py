"""The suites that runs were given when they were trained: what is measured where the command line names none."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.config.did_you_mean import suggest
from caldpo.config.find_runs import find_runs
from caldpo.config.validation import Problem
from caldpo.errors import CaldpoError
from caldpo.utils.yaml_io import read_yaml


def known_suites(*own: Path) -> list[str]:
    """The options of ``suite``: those of this project, and those in a person's own folders of configurations."""
    return list(dict.fromkeys(file.stem for place in (conf_dir(), *own) for file in sorted(place.glob("suite/*.yaml"))))


def find_unknown_suites(cfg: DictConfig) -> Iterator[Problem]:
    """The problem of every name in ``suites`` of a training run that no configuration of its search path has."""
    sources = cfg.hydra.runtime.config_sources
    known = known_suites(*(Path(source.path) for source in sources if source.schema == "file" and source.path))
    suites = OmegaConf.select(cfg, "suites")
    for name in suites if isinstance(suites, Sequence) and not isinstance(suites, str) else ():
        if isinstance(name, str) and name not in known:
            yield Problem(
                "suites",
                name,
                f"no such suite{suggest(name, known)}",
                f"choose among {', '.join(known)}; your own lies in suite/ of the folder that --config-dir names",
            )


def with_attached_suites(overrides: Sequence[str], multirun: bool, config_dir: str | None = None) -> list[str]:
    """The overrides of an evaluation with the suites of its runs, if it names a run and no suite.

    Names alone are taken from a run's folder, and those of options that there are: what an option builds, this project
    and the person's own ``--config-dir`` say. Any other is left out, which is said; so is ``judge``, unless the command
    line has keys of it: without an endpoint it could measure nothing.

    Args:
        overrides: of the command line, ``run=FOLDER`` among them or not.
        multirun: whether it is a sweep.
        config_dir: the person's own folder of configurations.
    """
    told = list(overrides)
    if any(text.lstrip("+~").partition("=")[0].partition("@")[0] == "suite" for text in told):
        return told
    run = next((text.partition("=")[2].strip("'\"") for text in told if text.startswith("run=")), None)
    found = list(dict.fromkeys(_of_runs(Path(run).expanduser()))) if run else []
    known = known_suites(*([] if config_dir is None else [Path(config_dir)]))
    for name in [name for name in found if name not in known]:
        found.remove(name)
        why = "no such option here; --config-dir=FOLDER adds some"
        print(f"suite {name} of this run is left out: {why}", file=sys.stderr)
    if not found:
        return told  # the command's own default
    if "judge" in found and not any(text.lstrip("+").startswith("judge.") for text in told):
        found.remove("judge")
        print("suite judge of this run is left out: it needs judge.base_url=URL judge.model=NAME", file=sys.stderr)
    return [*told, f"suite=[{','.join(found)}]"]


def _of_runs(folder: Path) -> Iterator[str]:
    """Names of the suites of every run at or below a folder; none where that cannot be told."""
    try:
        runs = find_runs(folder, key="run")
    except CaldpoError:
        return  # the command itself says what is wrong
    for run in runs:
        try:
            config: Any = read_yaml(run / "config.yaml")
        except (OSError, ValueError):
            continue
        named = config.get("suites") if isinstance(config, dict) else None
        names = named if isinstance(named, list) else []
        yield from (name for name in names if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_]+", name))
