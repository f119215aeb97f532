"""``--help`` of a command, from its yaml and the file names of the configuration folders: nothing is composed."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from caldpo.config.conf_dir import conf_dir, groups_of_defaults
from caldpo.utils.yaml_io import read_yaml

_BASE = "hydra_base"  # has the parts of the help that a command's own yaml leaves out
_SHARED = "base"  # an option that others are made of, and no choice


def help_text(config_name: str, conf: Path | None = None, extra: Path | None = None) -> str:
    """Write the help of a command. In its template, ``$GROUP_options`` lists the options of a group with a description.

    ``conf`` is a folder of configurations in place of the project's, ``extra`` one with further options.
    """
    folder = conf or conf_dir()
    primary = read_yaml(folder / f"{config_name}.yaml")
    base = folder / f"{_BASE}.yaml"
    parts = {**_help_of(read_yaml(base) if base.is_file() else {}), **_help_of(primary)}
    template, lines = str(parts.get("template", "")), []
    for group in sorted({*groups_of_defaults(primary), *(_folders(extra) if extra else ())}):
        files = [path for place in (folder, extra) if place for path in (place / group).glob("*.yaml")]
        options = {path.stem: path for path in files if path.stem != _SHARED}
        lines += [f"{group}: {', '.join(sorted(options))}"] if options else []
        if f"${group}_options" in template:
            parts[f"{group}_options"] = "\n".join(f"  {o:<15}{_description(options[o])}" for o in sorted(options))
    text = template.replace("${hydra.help.", "${").replace("$APP_CONFIG_GROUPS", "${groups}")
    return string.Template(text).safe_substitute(parts, groups="\n".join([*lines, ""]))


def _description(file: Path) -> str:
    """Read the first comment of an option that is not its package."""
    with file.open(encoding="utf-8") as lines:
        comments = (line[1:].strip() for line in lines if line.startswith("#"))
        return next((comment for comment in comments if not comment.startswith("@package")), "")


def _help_of(config: Mapping[str, Any]) -> dict[str, str]:
    return (config.get("hydra") or {}).get("help") or {}


def _folders(place: Path) -> Iterable[str]:
    return (path.name for path in place.iterdir() if path.is_dir())
