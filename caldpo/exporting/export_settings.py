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
from caldpo.config.find_runs import find_one_run, is_run
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

RECORD = "caldpo_export.json"  # in each export: whose it is; a folder with it may be written over by another export
_SIZE = re.compile(r"[1-9]\d*(\.\d+)?\s?(KB|MB|GB|KiB|MiB|GiB)", re.IGNORECASE)


@validated
@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of ``caldpo.export``, which ``conf/export.yaml`` explains."""

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
    """Check an export before anything heavy is imported.

    Raises:
        CaldpoError: not one run to export, an invalid value, a folder that is not to be written over, no token.
    """
    if cfg.run is None:
        raise CaldpoError("there is nothing to export", key="run", remedy="name a run's folder, run=outputs/RUN")
    run = find_one_run(Path(cfg.run).expanduser())
    wanted_checkpoint(cfg.checkpoint)
    if not _SIZE.fullmatch(str(cfg.max_shard_size)):
        raise CaldpoError("must be a size such as 5GB or 500MB", key="max_shard_size", value=cfg.max_shard_size)
    if cfg.to is not None:
        export_dir(Path(cfg.to), run)
    if cfg.push_to is not None:
        _require_repository(str(cfg.push_to))
        hub_token()


def export_dir(to: Path, run: Path) -> Path:
    """Resolve the folder ``to``, which an export of ``run`` may replace.

    Raises:
        CaldpoError: it holds something else than an earlier export, or lies in a run's folder.
    """
    place = to.expanduser().resolve()
    in_run = any(folder == run.resolve() or is_run(folder) for folder in (place, *place.parents))
    around = place in (*run.resolve().parents, Path.cwd().resolve())
    foreign = place.is_dir() and any(place.iterdir()) and not (place / RECORD).is_file()
    if in_run or around or foreign or (place.exists() and not place.is_dir()):
        raise CaldpoError(
            "is no place for an export, which goes into a new or empty folder or replaces an earlier export, neither"
            " in nor around a run or the current folder",
            key="to",
            value=to,
            remedy="name another folder, such as to=exports/NAME",
        )
    return place


def default_dir(run: Path, step: int | None, *, merged: bool) -> Path:
    """Name ``outputs/exports/SWEEP-RUN-step-40-merged`` by the run's folder; ``step`` is None at the run's end."""
    folder = run.resolve()
    of_sweep = (folder.parent / "multirun.yaml").is_file()
    parts = [folder.parent.name if of_sweep else "", folder.name, "" if step is None else f"step-{step}"]
    return Path("outputs/exports") / "-".join([part for part in parts if part] + ["merged"] * merged)


def hub_token() -> str:
    """Read the token for the hub from the environment only: no file of a run holds it.

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
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        name.index("/")  # the hub's rules do without an organisation
    except ValueError as error:
        raise CaldpoError(
            "is no name of a repository on the hub",
            key="push_to",
            value=name,
            remedy="write organisation/name in letters, digits, - _ and . (no -- or .., none at an end), at most 96"
            " characters",
        ) from error
