"""Where an export may be written: a new folder, an empty one, or an earlier export. No heavy imports here."""

from __future__ import annotations

from pathlib import Path

from caldpo.config.find_runs import is_run
from caldpo.errors import CaldpoError

RECORD = "caldpo_export.json"  # in each export: whose it is; a folder with it may be written over by another export


def require_place(to: Path, run: Path) -> Path:
    """The folder that ``to`` is, with links resolved, if an export may take its place.

    Args:
        to: as it was given.
        run: the folder of the run that is exported.

    Raises:
        CaldpoError: it holds something else than an earlier export, or lies in a run's folder.
    """
    place = to.expanduser().resolve()
    elsewhere = "name a folder that is new, empty, or an earlier export, such as to=exports/NAME"
    for folder in (place, *place.parents):
        if folder == run.resolve() or is_run(folder):
            raise CaldpoError(
                "lies in the folder of a run, which keeps what the run itself wrote",
                key="to",
                value=to,
                remedy=elsewhere,
            )
    if place.is_dir():
        if any(place.iterdir()) and not (place / RECORD).is_file():
            raise CaldpoError("holds something that is no export", key="to", value=to, remedy=elsewhere)
    elif place.exists():
        raise CaldpoError("is a file", key="to", value=to, remedy=elsewhere)
    if place in (*run.resolve().parents, Path.cwd().resolve()):
        raise CaldpoError("holds the run, or is where you are", key="to", value=to, remedy=elsewhere)
    return place


def default_place(run: Path, step: int | None, *, merged: bool) -> Path:
    """``outputs/exports/SWEEP-RUN-step-40-merged``: after the run's folder, and what tells this export from others.

    Args:
        step: None at the run's end.
    """
    folder = run.resolve()
    of_sweep = (folder.parent / "multirun.yaml").is_file()
    parts = [folder.parent.name if of_sweep else "", folder.name, "" if step is None else f"step-{step}"]
    return Path("outputs/exports") / "-".join([part for part in parts if part] + ["merged"] * merged)
