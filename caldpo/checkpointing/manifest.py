"""Describe a checkpoint's folder and verify its files; parse ``checkpoint=``. No heavy imports.

``checkpoints/step-N/`` holds ``weights.safetensors``, ``training.pt`` and ``manifest.json``. With sharded weights
``weights/`` and ``optimizer/`` replace the first, with a file per rank; where the optimiser alone is sharded
``optimizer/`` lies beside it. The folder gets its name when all are complete; the manifest has the size and the SHA-256
of the others, and a digest of itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from caldpo.config.bounds import NonNegativeInt
from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import write_text
from caldpo.utils.digests import file_digest

FOLDER = "checkpoints"
WEIGHTS, TRAINING, MANIFEST = "weights.safetensors", "training.pt", "manifest.json"
WEIGHT_PARTS, OPTIMIZER_PARTS = "weights", "optimizer"  # folders of shards, a file per rank
SAMPLES = "samples.jsonl"
FORMAT = 1
_FOLDER_NAME = re.compile(r"step-(\d+)")
_STEP = r"(?:step-)?([0-9]{1,18})"

StepName = Annotated[str, Field(pattern=r"\A(?:step-)?[0-9]{1,18}\Z", description="a step as step-40")]
Wanted = Literal["final", "last", "best"] | int  # a checkpoint by name, or by its step
CheckpointName = Literal["final", "last", "best"] | NonNegativeInt | StepName


class DamagedCheckpointError(Exception):
    """A checkpoint that does not hold what was written; the message names the file."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint without reading its tensors."""

    step: int  # optimiser steps that the weights have seen
    rows: int  # of metrics.csv at that step
    samples: int  # bytes of samples.jsonl at that step
    seconds: float  # training time until then, over all stretches of the run
    identity: dict[str, str] = field(default_factory=dict)  # digests of what must not change for the run to resume
    versions: dict[str, str] = field(default_factory=dict)  # of software and devices that determine the last bits
    same: dict[str, str] = field(default_factory=dict)  # names of tied weights, each with that of the stored tensor
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # size and digest of each
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` with a digest of itself."""
        content = asdict(self)
        write_text(folder / MANIFEST, json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n")


def describe_files(folder: Path, names: Iterable[str] = (WEIGHTS, TRAINING)) -> dict[str, dict[str, Any]]:
    """Compute size and digest of each file."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)} for name in names}


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest; errors as of :func:`verify`."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content.pop("sha256") != _digest(content):
            raise DamagedCheckpointError(f"{MANIFEST} is not what was written")
        if content["format"] != FORMAT:
            raise DamagedCheckpointError(f"its format is {content['format']}, this version of caldpo reads {FORMAT}")
        manifest = Manifest(**content)
        if not _has_valid_values(manifest):
            raise DamagedCheckpointError(f"{MANIFEST} holds other kinds of values than are written")
        return manifest
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{MANIFEST} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{MANIFEST} cannot be read ({error})") from error


def verify(folder: Path) -> Manifest:
    """Compare every file of a checkpoint with its manifest; reads all of them.

    Raises:
        DamagedCheckpointError: a file is missing or changed.
        OSError: a file cannot be read, so that it is not known whether it is intact.
    """
    manifest = read_manifest(folder)
    for name, written in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != written["bytes"]:
                raise DamagedCheckpointError(f"{name} has {size:,} bytes, {written['bytes']:,} were written")
            if file_digest(path) != written["sha256"]:
                raise DamagedCheckpointError(f"{name} is not what was written (its SHA-256 differs)")
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{name} is missing") from error
    return manifest


def checkpoint_folders(run: Path) -> dict[int, Path]:
    """List a run's checkpoints by optimiser step, in ascending order, intact or damaged."""
    folders = (run / FOLDER).glob("step-*")
    return dict(sorted((int(m[1]), p) for p in folders if (m := _FOLDER_NAME.fullmatch(p.name)) and p.is_dir()))


def newest_intact(run: Path) -> tuple[Path | None, Manifest | None, list[str]]:
    """Find the folder and manifest of a run's last intact checkpoint, or None, and the damage of each later one.

    Raises:
        OSError: a file cannot be read.
    """
    damages: list[str] = []
    for step, folder in reversed(checkpoint_folders(run).items()):
        try:
            manifest = verify(folder)
            if manifest.step != step:
                raise DamagedCheckpointError(f"it holds step {manifest.step}")
            return folder, manifest, damages
        except DamagedCheckpointError as damage:
            damages.append(f"{folder} is damaged: {damage}")
    return None, None, damages


def wanted_checkpoint(value: int | str) -> Wanted:
    """Parse ``checkpoint=``: ``final``, ``last``, ``best``, or an optimiser step as a number or ``step-40``.

    Raises:
        CaldpoError: it is none of them.
    """
    if value == "final" or value == "last" or value == "best":
        return value  # type: ignore[return-value]  # mypy does not narrow by comparison
    step = re.fullmatch(_STEP, str(value))
    if step is None:
        wrong = "must be final, last, best or an optimiser step (40 or step-40)"
        raise CaldpoError(wrong, key="checkpoint", value=value)
    return int(step[1])


def _has_valid_values(manifest: Manifest) -> bool:
    """Check the types of all values that are read later, and the names of the files."""
    texts = [text for digests in (manifest.identity, manifest.same) for text in digests.values()]
    files = list(manifest.files.values())
    counts = [manifest.step, manifest.rows, manifest.samples, *(file["bytes"] for file in files)]
    return (
        _names_all_files(manifest.files.keys())
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and all(isinstance(text, str) for text in (*texts, *(file["sha256"] for file in files)))
        and isinstance(manifest.seconds, int | float)
        and isinstance(manifest.versions, dict)
    )


def _names_all_files(names: Collection[str]) -> bool:
    """Check that all files of one of the three layouts are named, and none outside the folder."""
    parts = {name.partition("/")[0] for name in names}
    inside = all(not {"", ".", ".."} & set(name.split("/")) and "\\" not in name for name in names)
    sharded = ({WEIGHT_PARTS, OPTIMIZER_PARTS, TRAINING}, {WEIGHTS, OPTIMIZER_PARTS, TRAINING})
    return inside and (set(names) == {WEIGHTS, TRAINING} or parts in sharded)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
