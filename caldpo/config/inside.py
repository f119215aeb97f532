"""What a run writes stays inside its folder: neither a name nor a link leads out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from caldpo.config.check import Problem
from caldpo.config.redact import redact_text
from caldpo.errors import CaldpoError

# parts of the paths of a run's files that a command line can set; all lie below the run's or the sweep's folder
_NAMES = ("hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.name")


def find_escapes(cfg: DictConfig) -> Iterator[Problem]:
    """The names of a run's folder and files, and of options, that would lead out of the folder they belong in.

    Args:
        cfg: one run's configuration, with Hydra's own section in it.
    """
    for key in _NAMES:
        try:
            name = OmegaConf.select(cfg, key)
        except OmegaConfBaseException:
            continue  # made of a value that cannot be resolved, which is reported where it stands
        if isinstance(name, str) and not stays_inside(name):
            yield Problem(
                key,
                redact_text(name),
                "would lead out of the output folder",
                "write a relative path without .. ; hydra.run.dir and hydra.sweep.dir name the folder itself",
            )
    for group, option in (OmegaConf.select(cfg, "hydra.runtime.choices") or {}).items():
        if isinstance(option, str) and not stays_inside(option):
            remedy = "choose an option by its name; --config-dir adds a folder with options of your own"
            yield Problem(str(group), redact_text(option), "would lead out of the folder of this group", remedy)


def stays_inside(name: str) -> bool:
    """Whether ``name`` joined to a folder is a path below it, by its text alone."""
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def require_no_links_out(folder: Path) -> None:
    """Refuse a run's folder with a link out of it anywhere: before anything is written there, whatever its name.

    Below ``wandb/`` W&B itself links to its caches; ``wandb`` may not be a link.

    Raises:
        CaldpoError: naming the link.
    """
    require_unlinked(folder, *sorted(path.name for path in folder.iterdir() if path.name != "wandb"))
    if (folder / "wandb").is_symlink():
        require_unlinked(folder, "wandb")


def require_unlinked(folder: Path, *names: str) -> None:
    """Refuse files that are links out of a folder, through which writing would change what lies elsewhere.

    Args:
        folder: may come from other hands. It may be a link itself, since that is what a person named.
        names: of files and folders in it that are going to be written to; those that are not there are none.

    Raises:
        CaldpoError: one of them, or anything below it, is a link that leads out of ``folder``.
    """
    root = folder.resolve()
    for name in names:
        top = folder / name
        below = top.rglob("*") if top.is_dir() and not top.is_symlink() else ()
        for path in (top, *below):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise CaldpoError(
                    f"is a link to {path.resolve()}, outside the folder, where writing would change what is there",
                    key=str(path),
                    remedy="put a copy in the place of the link",
                )
