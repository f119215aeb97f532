"""Keep what a run writes inside its folder: refuse names and links that lead out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from caldpo.errors import CaldpoError

_JOBS = ".submitit"  # in a sweep's folder
_MADE_ANEW_BY_WANDB = ("debug.log", "debug-internal.log", "latest-run")
# W&B's service links its own log, in the user's cache folder, into the folder of each run it begins; a run that is
# gone on with begins a folder of its own, so nothing is written through the link again
_LEFT_BY_WANDB = ("*run-*/logs/debug-core.log", "replaced/*run-*/logs/debug-core.log")


def stays_inside(name: str) -> bool:
    """Tell whether ``name`` joined to a folder is a path below it, by its text alone."""
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def require_no_links_out(folder: Path) -> None:
    """Refuse a run's folder with a link out of it anywhere, whatever its name, before anything is written there.

    Exempt are the links at the top of ``wandb/`` that W&B removes and replaces instead of writing through them, and
    its service's log in the folders of its earlier runs. The folder may be a link itself, since a person named it.
    """
    root = folder.resolve()
    let_be = [f"/wandb/{name}" for name in (*_MADE_ANEW_BY_WANDB, *_LEFT_BY_WANDB)]
    for link in _links(root):
        if not any(PurePath("/", link.relative_to(root)).match(pattern) for pattern in let_be):
            _require_inside(link, root, folder / link.relative_to(root))


def require_no_links_out_of_sweep(folder: Path, depth: int = 1) -> None:
    """Refuse links out of a sweep's folder in what the sweep itself writes; runs check their own folders.

    Not everything below is, since a sweep may be told to lie in a folder with other things in it: its runs' folders
    are ``depth`` down.
    """
    root = folder.resolve()
    for link in (*_links(root, depth), *_links(root / _JOBS)):
        _require_inside(link, root, folder / link.relative_to(root))


def require_unlinked(folder: Path, *names: str) -> None:
    """Refuse links out of a folder among, and below, the files and folders in it that are going to be written to."""
    root = folder.resolve()
    for name in names:
        top = root / name
        for link in [top] if top.is_symlink() else _links(top):
            _require_inside(link, root, folder / link.relative_to(root))


def _links(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """Yield every link below a folder, to a depth, following none."""
    if depth == 0:
        return
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_symlink():
            yield folder / entry.name
        elif entry.is_dir(follow_symlinks=False):
            yield from _links(folder / entry.name, None if depth is None else depth - 1)


def _require_inside(link: Path, root: Path, named: Path) -> None:
    """Raise where ``link`` leads out of ``root``, under the name that the person knows it by."""
    target = Path(os.path.realpath(link))  # Path.resolve fails at links that lead in a circle
    if not target.is_relative_to(root):
        raise CaldpoError(
            f"is a link to {target}, outside the folder, where writing would change what is there",
            key=str(named),
            remedy="put a copy in the place of the link",
        )
