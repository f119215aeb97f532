"""What a checkpoint's folder says of itself, and whether it tells the truth. No heavy imports.

``checkpoints/step-N/`` holds ``weights.safetensors``, ``training.pt`` and ``manifest.json``; of a model that is sharded
over ranks ``weights/`` and ``optimizer/`` with a file a rank in place of the first, and where the optimiser alone is
sharded ``optimizer/`` beside it. The folder gets its name when all are complete; the manifest has the size and the
SHA-256 of the others, and one of itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from caldpo.utils.atomic_io import file_digest, write_text

FOLDER = "checkpoints"
WEIGHTS, TRAINING, MANIFEST = "weights.safetensors", "training.pt", "manifest.json"
WEIGHT_PARTS, OPTIMIZER_PARTS = "weights", "optimizer"  # folders, of a model that is sharded over ranks
SAMPLES = "samples.jsonl"
FORMAT = 1
_NAME = re.compile(r"step-(\d+)")


class DamagedCheckpointError(Exception):
    """A checkpoint that does not hold what was written; says why."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint without reading its tensors.

    Args:
        step: optimiser steps that the weights have seen.
        rows: rows of ``metrics.csv`` at that moment.
        samples: bytes of ``samples.jsonl`` at that moment.
        seconds: of the run until then, all its stretches together.
        identity: what has to be the same for the run to go on: the reference's weights, the tokens.
        versions: of what determines a run's numbers.
        same: names of tied weights, each with the name under which the tensor is kept.
        files: size and digest of each file.
        format: of this folder.
    """

    step: int
    rows: int
    samples: int
    seconds: float
    identity: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Into the folder, with a digest of itself."""
        content = asdict(self)
        write_text(folder / MANIFEST, json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n")


def describe_files(folder: Path, names: Iterable[str] = (WEIGHTS, TRAINING)) -> dict[str, dict[str, Any]]:
    """Size and digest of the tensors' files."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)} for name in names}


def read_manifest(folder: Path) -> Manifest:
    """What the folder says of itself.

    Raises:
        DamagedCheckpointError: it makes no sense, or was changed.
        OSError: the disk does not give it: whether it is whole is not known.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        said = content.pop("sha256")
        if said != _digest(content):
            raise DamagedCheckpointError(f"{MANIFEST} is not what was written")
        if content["format"] != FORMAT:
            raise DamagedCheckpointError(f"its format is {content['format']}, this version of caldpo reads {FORMAT}")
        manifest = Manifest(**content)
        if not _is_plain(manifest):
            raise DamagedCheckpointError(f"{MANIFEST} holds other kinds of values than are written")
        return manifest
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{MANIFEST} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{MANIFEST} cannot be read ({error})") from error


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are what was written; reads all of them.

    Raises:
        DamagedCheckpointError: they are not.
        OSError: the disk does not give them: whether they are whole is not known.
    """
    manifest = read_manifest(folder)
    for name, said in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != said["bytes"]:
                raise DamagedCheckpointError(f"{name} has {size:,} bytes, {said['bytes']:,} were written")
            if file_digest(path) != said["sha256"]:
                raise DamagedCheckpointError(f"{name} is not what was written (its SHA-256 differs)")
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{name} is missing") from error
    return manifest


def checkpoint_folders(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by optimiser step, in their order, whole or damaged."""
    found = {int(m[1]): p for p in (run / FOLDER).glob("step-*") if (m := _NAME.fullmatch(p.name)) and p.is_dir()}
    return dict(sorted(found.items()))


def newest_whole(run: Path) -> tuple[Path | None, Manifest | None, list[str]]:
    """The last checkpoint of a run that is what was written, its manifest, and what is wrong with later ones.

    Raises:
        OSError: the disk does not give one of them.
    """
    damages: list[str] = []
    for step, folder in _newest_first(run):
        try:
            manifest = verify(folder)
            if manifest.step != step:
                raise DamagedCheckpointError(f"it holds step {manifest.step}")
            return folder, manifest, damages
        except DamagedCheckpointError as damage:
            damages.append(f"{folder} is damaged: {damage}")
    return None, None, damages


def _newest_first(run: Path) -> Iterator[tuple[int, Path]]:
    return iter(sorted(checkpoint_folders(run).items(), reverse=True))


def _is_plain(manifest: Manifest) -> bool:
    """Whether counts are counts, names are texts, and both files are described."""
    texts = [text for said in (manifest.identity, manifest.same) for text in said.values()]
    files = list(manifest.files.values())
    counts = [manifest.step, manifest.rows, manifest.samples, *(file["bytes"] for file in files)]
    return (
        _are_all_there(manifest.files.keys())
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and all(isinstance(text, str) for text in (*texts, *(file["sha256"] for file in files)))
        and isinstance(manifest.seconds, int | float)
        and isinstance(manifest.versions, dict)
    )


def _are_all_there(names: Collection[str]) -> bool:
    """Whether a checkpoint's files are named, whole weights or parts, and none that is elsewhere."""
    parts = {name.partition("/")[0] for name in names}
    inside = all(not {"", ".", ".."} & set(name.split("/")) and "\\" not in name for name in names)
    sharded = ({WEIGHT_PARTS, OPTIMIZER_PARTS, TRAINING}, {WEIGHTS, OPTIMIZER_PARTS, TRAINING})
    return inside and (set(names) == {WEIGHTS, TRAINING} or parts in sharded)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
