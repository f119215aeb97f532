"""Find run folders by the names of their files, and explain when there are none. No heavy imports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from caldpo.config.did_you_mean import suggest
from caldpo.errors import CaldpoError
from caldpo.security.secrets import redact_text
from caldpo.utils.file_names import require_enterable
from caldpo.utils.yaml_io import read_yaml

RUN_FILES = ("config.yaml", "metrics.csv", "summary.json")
# as Hydra writes it: no yaml has to be read to know
_NO_TRAINING = re.compile(r"^(dry_run: true|replay: (?!null$).+)$", re.MULTILINE)
_NEWEST = 5  # sweeps named where no folder was
_SHOWN = 8  # sweeps named in an error message


def is_run(folder: Path) -> bool:
    """Tell whether ``folder`` holds a run's files.

    One of the three alone is not enough: experiment trackers keep a ``config.yaml`` of their own. Hydra's folder is,
    also of a run that failed before it wrote anything. An estimate, or a dry run, is none, nor
    is a folder that may not be entered.
    """
    try:
        if (folder / ".hydra").is_dir():
            return not holds_no_training(folder)
        return sum((folder / name).is_file() for name in RUN_FILES) >= 2
    except PermissionError:
        return False


def find_runs(folder: Path, key: str = "sweep") -> list[Path]:
    """List the run folders at or below ``folder``, numbers in names by value; CaldpoError where there are none."""
    require_enterable(folder, key=key, value=folder)
    runs = list(walk_runs(folder))
    if runs:
        return runs
    wrong = "no runs in this folder (a run holds .hydra, config.yaml, metrics.csv or summary.json)"
    sweeps = _other_sweeps(folder)
    if not folder.is_dir():
        wrong = f"no such folder{suggest(folder.name, (sweep.name for sweep in sweeps))}"
    remedy = "train first, for example: python -m caldpo.train -m loss=dpo,cal_dpo seed=0,1,2"
    if sweeps:
        more = f" and {len(sweeps) - _SHOWN} more" if len(sweeps) > _SHOWN else ""
        remedy = f"name a folder that holds runs; the newest first: {', '.join(map(str, sweeps[:_SHOWN]))}{more}"
    raise CaldpoError(wrong, key=key, value=folder, remedy=remedy)


def walk_runs(folder: Path) -> Iterator[Path]:
    """Yield the run folders at or below ``folder``, numbers in names by value; none where there is no such folder."""
    for path, children, _ in os.walk(folder):
        children[:] = sorted((c for c in children if not c.startswith(".")), key=natural)
        if is_run(Path(path)):
            yield Path(path)


def find_one_run(folder: Path) -> Path:
    """Find the one run that ``run=`` names.

    Raises:
        CaldpoError: no run lies at or below the folder, or several do.
    """
    runs = find_runs(folder, key="run")
    if len(runs) > 1:
        shown = ", ".join(f"'{run}'" for run in runs[:_SHOWN])
        shown += f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
        raise CaldpoError(
            f"holds {len(runs)} runs, and one is needed", key="run", value=folder, remedy=f"name one of them: {shown}"
        )
    return runs[0]


def no_folder_error() -> CaldpoError:
    """Build the error of a command that names no folder: how to name one, and the newest sweeps."""
    sweeps = [str(sweep) for sweep in _sweeps_in(Path("outputs"))]
    listed = f"; the newest: {', '.join(sweeps[:_NEWEST])}" if sweeps else ""
    more = f" and {len(sweeps) - _NEWEST} more" if len(sweeps) > _NEWEST else ""
    remedy = f"name a folder: python -m caldpo.compare outputs/SWEEP{listed}{more}"
    return CaldpoError("there is no folder to compare", key="sweep", remedy=remedy)


def sweep_overrides(folder: Path) -> list[str] | None:
    """Read the overrides that started a sweep, without secrets, from Hydra's record of it; None where it has none.

    Of Hydra's own there is the folder, where it was chosen: ``resume=auto`` looks for finished runs there.
    """
    try:
        typed = read_yaml(folder / "multirun.yaml")["hydra"]["overrides"]
        chosen = [text for text in typed.get("hydra") or () if str(text).startswith("hydra.sweep.dir=")]
        return [redact_text(str(text)) for text in [*typed["task"], *chosen] if not str(text).startswith("-")]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def natural(text: str) -> list[tuple[int, int, str]]:
    """Make a sort key under which ``seed=10`` comes after ``seed=9``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text)]


def holds_no_training(folder: Path) -> bool:
    """Tell whether a folder was made with ``dry_run: true``, as estimates are, or ``replay=``, and holds no metrics."""
    config = folder / ".hydra" / "config.yaml"
    if (folder / "metrics.csv").is_file() or not config.is_file():
        return False
    return _NO_TRAINING.search(config.read_text(encoding="utf-8", errors="replace")) is not None


def _sweeps_in(*places: Path) -> list[Path]:
    """List the folders in ``places`` that are a run or hold one directly, newest first; those of one time by name."""
    folders = (folder for place in places for folder in place.glob("[!.]*/"))
    sweeps = [folder for folder in folders if is_run(folder) or any(map(is_run, folder.glob("[!.]*/")))]
    return sorted(sweeps, key=lambda folder: (-folder.stat().st_mtime, natural(str(folder))))


def _other_sweeps(folder: Path) -> list[Path]:
    """List the sweeps beside ``folder`` and in ``outputs``, newest first, as typed from the current folder."""
    places = dict.fromkeys(place.resolve() for place in (folder.parent, Path("outputs")))
    here = Path.cwd()
    sweeps = [sweep for sweep in _sweeps_in(*places) if sweep != folder.resolve()]
    return [sweep.relative_to(here) if sweep.is_relative_to(here) else sweep for sweep in sweeps]
