"""Keys of an export, and where it may be written: a new folder, an empty one, or an earlier export.

The signature of :class:`ExportSettings` is the schema of its configuration. No heavy imports here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from caldpo.checkpointing.manifest import CheckpointName, wanted_checkpoint
from caldpo.config.find_runs import find_runs, is_run
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

RECORD = "caldpo_export.json"  # in each export: whose it is; a folder with it may be written over by another export
_SIZE = re.compile(r"[1-9]\d*(\.\d+)?\s?(KB|MB|GB|KiB|MiB|GiB)", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(?<![.-])/\w[\w.-]*(?<![.-])", re.ASCII)  # the hub's own rules
_LONGEST = 96  # characters of a name on the hub


@validated
@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """An export.

    Args:
        run: folder of one run.
        checkpoint: ``final`` (at the run's last step), ``last`` (the last that was saved, also of a run that did not
            finish), or an optimiser step, ``40`` or ``step-40``.
        to: folder to write; None names one in ``outputs/exports`` after the run's folder and the step.
        merge: fold an adapter into its base.
        dtype: of the weights that are written; None leaves them as they are.
        max_shard_size: largest weight file, as ``5GB``.
        picture: draw the curves of the implicit reward beside the card.
        push_to: ``organisation/name`` on the hub to upload it to.
        private: whether a repository that is made there is private.
        allow_untrusted_code: build classes outside caldpo that a run's configuration names, and run its model's code.
    """

    run: str | None
    checkpoint: CheckpointName
    to: str | None
    merge: bool
    dtype: Literal["float32", "bfloat16", "float16"] | None
    max_shard_size: str
    picture: bool
    push_to: str | None
    private: bool
    allow_untrusted_code: bool


def check_export(cfg: DictConfig) -> None:
    """Check what can be checked before anything heavy is imported.

    Raises:
        CaldpoError: there is not one run to export, a value is none, the folder is not to be written over, or the hub
            could not be spoken to.
    """
    if cfg.run is None:
        raise CaldpoError("there is nothing to export", key="run", remedy="name a run's folder, run=outputs/RUN")
    runs = find_runs(Path(cfg.run).expanduser(), key="run")
    if len(runs) != 1:
        raise CaldpoError(
            f"{len(runs)} runs lie here, and one is exported at a time",
            key="run",
            value=cfg.run,
            remedy=f"name one of them, for example {runs[0]}",
        )
    wanted_checkpoint(cfg.checkpoint)
    if not _SIZE.fullmatch(str(cfg.max_shard_size)):
        raise CaldpoError("must be a size such as 5GB or 500MB", key="max_shard_size", value=cfg.max_shard_size)
    if cfg.to is not None:
        export_dir(Path(cfg.to), runs[0])
    if cfg.push_to is not None:
        _require_repository(str(cfg.push_to))


def export_dir(to: Path, run: Path) -> Path:
    """Resolve the folder ``to``, if an export may take its place.

    Args:
        to: of the command line.
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


def default_dir(run: Path, step: int | None, *, merged: bool) -> Path:
    """Name ``outputs/exports/SWEEP-RUN-step-40-merged``: by the run's folder, and what tells this export from others.

    Args:
        step: None at the run's end.
    """
    folder = run.resolve()
    of_sweep = (folder.parent / "multirun.yaml").is_file()
    parts = [folder.parent.name if of_sweep else "", folder.name, "" if step is None else f"step-{step}"]
    return Path("outputs/exports") / "-".join([part for part in parts if part] + ["merged"] * merged)


def hub_token() -> str:
    """Read the token for the hub from the environment alone: no file of a run holds it.

    Raises:
        CaldpoError: there is none.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise CaldpoError(
            "there is no token to upload with",
            key="push_to",
            remedy="set the environment variable HF_TOKEN to one that may write (huggingface.co/settings/tokens)",
        )
    return token


def _require_repository(name: str) -> None:
    if not _REPOSITORY.fullmatch(name) or len(name) > _LONGEST or name.endswith(".git"):
        raise CaldpoError(
            "is no name of a repository on the hub",
            key="push_to",
            value=name,
            remedy="write organisation/name in letters, digits, - _ and . (no -- or .., none at an end), at most 96"
            " characters",
        )
    hub_token()
