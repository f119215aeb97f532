"""The configuration folder of the package, and the groups that a configuration in it is composed of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from caldpo.errors import CaldpoError


def conf_dir() -> Path:
    """Find the absolute ``conf`` folder: inside the package in an installed wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    # A checkout's conf belongs to it only beside pyproject.toml: site-packages may hold any "conf".
    places = [package / "conf"]
    if (package.parent / "pyproject.toml").is_file():
        places.append(package.parent / "conf")
    for place in places:
        if place.is_dir():
            return place
    raise CaldpoError(
        f"the configuration folder is missing, looked in {', '.join(map(str, places))}",
        remedy="install caldpo again, or run it from a complete checkout",
    )


def known_losses() -> list[str]:
    """List the options of ``loss`` that the package has."""
    return sorted(path.stem for path in (conf_dir() / "loss").glob("*.yaml"))


def is_option(group: str, name: str, own: Iterable[Path] = ()) -> bool:
    """Tell whether a group has an option of this name, in the package or in ``own`` folders of configurations."""
    return any((folder / group / f"{name}.yaml").is_file() for folder in (conf_dir(), *own))


def groups_of_defaults(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the groups of a defaults list: ``loss`` of ``- loss: dpo``."""
    for entry in config.get("defaults", ()):
        if isinstance(entry, Mapping):
            name = str(next(iter(entry)))
            yield name.removeprefix("optional ").removeprefix("override ").removeprefix("/").split("@")[0]
