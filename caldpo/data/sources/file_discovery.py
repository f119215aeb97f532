"""Find the data files that a name stands for: a file, a folder, a split of a folder, or a pattern. No heavy imports.

A folder may be laid out as on the hub (``train.jsonl`` and ``test.jsonl``, ``data/train-00000-of-00003.parquet``,
``train/0000.parquet``), or written by ``save_to_disk`` of ``datasets``.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from caldpo.config.did_you_mean import suggest
from caldpo.config.find_runs import natural
from caldpo.data.sources.file_checks import (
    ENDINGS,
    HELD_OUT,
    ending,
    find_test_split,
    list_contents,
    list_names,
    require_all_shards,
    require_file,
    without_shard,
)
from caldpo.errors import CaldpoError
from caldpo.utils.file_names import expanded, is_there, require_enterable

_TRAIN = frozenset(("train", "training"))
_TEST = frozenset(("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"))
_METADATA = frozenset(
    f"{name}.json"
    for name in (
        *("dataset_infos", "dataset_info", "state", "dataset_dict"),
        *("config", "generation_config", "adapter_config"),  # of a model, with its tokenizer's
        *("tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens", "vocab"),
    )
)
_MAX_ENTRIES = 20_000  # a home folder is no data set
_STATE, _DICT = "state.json", "dataset_dict.json"  # of a saved Dataset, of a saved DatasetDict


class UnlistableFolderError(CaldpoError):
    """A folder holds more than any data set, or one below it cannot be opened."""


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Files to be read one after another."""

    files: tuple[Path, ...]  # in natural order
    notes: tuple[str, ...] = ()  # what was chosen and left out, where there was a choice; a line each
    held_out: str | None = None  # name of the test split beside the files


def find_files(name: str, *, training: bool = True) -> DataFiles:
    """Find the data files that ``name`` stands for.

    Args:
        name: path of a file, of a folder, of a split in a folder (``FOLDER/train_prefs`` where that folder has files of
            this split), or a pattern (``shards/*.parquet``, ``**`` for any depth); ``~`` is expanded.
        training: whether a folder needs a split to train on; otherwise it may hold a test split alone.

    Raises:
        CaldpoError: no such file or folder, no access, no data files, files of two kinds, a missing shard, a folder
            with several splits to train on. Its key is ``name``.
    """
    path = expanded(name)
    require_enterable(path, key=name)
    if is_there(path):
        return _of_folder(path, name, training) if path.is_dir() else DataFiles((require_file(name),))
    if any(mark in name for mark in "*?["):
        return _of_pattern(path, name)
    if "/" in name and not ending(path) and is_there(path.parent) and path.parent.is_dir():
        splits: dict[str, Sequence[Path]] = {}
        with suppress(UnlistableFolderError):  # then nothing is known of this name
            splits = {split: files for split, files in _splits(path.parent, name)[0].items() if split}
        if files := splits.get(path.name):
            held_out = find_test_split(path.name, splits)
            return DataFiles(_settled(files, name), held_out=held_out and str(path.parent / held_out))
        if splits:
            known = sorted(splits, key=natural)
            near = suggest(path.name, known)
            remedy = f"name one of {list_names(known)}"
            raise CaldpoError(f"{path.parent} has no split {path.name}{near}", key=name, remedy=remedy)
    return DataFiles((require_file(name),))  # raises


def require_split_shards(folder: Path, split: str) -> None:
    """Check that no shard of a split, or of a slice of one, is missing in a folder laid out as on the hub.

    Raises:
        CaldpoError: naming the missing shards. Its key is ``split``.
    """
    require_all_shards(_splits(folder, split)[0].get(split.split("[")[0], []), split)


def _of_folder(folder: Path, name: str, training: bool) -> DataFiles:
    splits, left_out = _splits(folder, name)
    if not splits:
        raise CaldpoError(
            f"the folder has no data files{list_contents(folder)}",
            key=name,
            remedy=f"name a folder of files that end in {', '.join(ENDINGS)}",
        )
    train, held_out, notes = _roles(splits, folder, name, training)
    files = _settled([file for split in train for file in splits[split]], name)
    return DataFiles(files, (*_describe(files, left_out, folder), *notes), held_out)


def _of_pattern(pattern: Path, name: str) -> DataFiles:
    every = glob.glob(str(pattern), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
    matched = [Path(match) for match in sorted(every, key=natural)]
    files = [path for path in matched if ending(path) in ENDINGS and path.name not in _METADATA and path.is_file()]
    left_out = [str(path) for path in matched if path not in files]
    if not files:
        what = f"matches no data file, but {list_names(left_out)}" if left_out else "matches no file"
        base = next(p for p in pattern.parents if not any(mark in str(p) for mark in "*?["))
        listing = list_contents(base) if base.is_dir() else f", and there is no folder {base}"
        remedy = "mend the pattern, or name files or a folder"
        raise CaldpoError(f"the pattern {what}{listing}", key=name, remedy=remedy)
    notes = _describe(files, left_out, None)
    if {_role(_split_of(Path(file.name))) for file in files} >= {"train", "test"}:
        notes.append("files of a training split and of a test split are read together")
    return DataFiles(_settled(files, name), tuple(notes))


def _describe(files: Sequence[Path], left_out: Sequence[str], folder: Path | None) -> list[str]:
    """Note which files (of a folder) are read, those without a byte, and the other files there."""
    names = [str(file.relative_to(folder) if folder else file) for file in files]
    notes = [f"{len(names):,} files: {names[0]} to {names[-1]}" if len(names) > 1 else f"files: {', '.join(names)}"]
    if empty := [file.name for file in files if file.is_file() and not file.stat().st_size]:
        notes.append(f"empty files: {list_names(empty)}")
    if left_out:
        notes.append(f"left out, no data: {list_names(left_out)}")
    return notes


def _roles(splits: Iterable[str], folder: Path, name: str, training: bool) -> tuple[list[str], str | None, list[str]]:
    """Choose the splits to train on and the one to hold out, and note the choice.

    ``""`` stands for the files whose names tell no split.
    """
    by_role: dict[str, list[str]] = {"train": [], "test": [], "": []}
    for split in sorted(splits, key=natural):
        by_role[_role(split)].append(split)
    train = by_role["train"] or by_role[""]
    if training and (not train or (len(by_role["train"]) > 1 and "train" not in train)):
        listed = list_names([*by_role["train"], *by_role["test"], *filter(None, by_role[""])])
        first = (by_role["train"] or by_role["test"])[0]
        why = "several splits to train on" if train else "no split to train on"
        remedy = f"name one of them: {folder / first}, for instance"
        raise CaldpoError(f"the folder has {why} ({listed})", key=name, remedy=remedy)
    train = ["train"] if "train" in train else train
    held_out = next((split for split in (*HELD_OUT, *by_role["test"]) if split in by_role["test"]), None)
    rest = [s for role in by_role.values() for s in role if s and s not in train and s != held_out]
    notes = [f"split {list_names(train)}"] if by_role["train"] else []
    notes += [f"other splits, left out: {list_names(rest)}"] if rest else []
    if "" in splits and "" not in train:
        notes.append("files that belong to no split are left out")
    return train, held_out and str(folder / held_out), notes


def _role(split: str) -> str:
    words = set(re.split(r"[-_. \d]+", split.lower()))
    train, test = bool(words & _TRAIN), bool(words & _TEST)
    return "train" if train and not test else "test" if test and not train else ""


def _splits(folder: Path, name: str) -> tuple[dict[str, Sequence[Path]], list[str]]:
    """Group the data files of a folder by the split their names tell, ``""`` for none, and list the other files."""
    if (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file():
        return {"": _saved_files(folder, name)}, []
    if (folder / _DICT).is_file():
        saved = _listed(folder / _DICT, itemgetter("splits"), name)
        return {split.name: _saved_files(split, name) for split in saved}, []
    splits: dict[str, list[Path]] = {}
    left_out = []
    for file in _walk(folder):
        inside = file.relative_to(folder)
        if any(part.startswith((".", "__")) for part in inside.parts):
            left_out.append(f"{inside} (hidden)")
        elif ending(file) not in ENDINGS or file.name in _METADATA:
            left_out.append(str(inside))
        else:
            splits.setdefault(_split_of(inside), []).append(file)
    return {**splits}, left_out


def _split_of(inside: Path) -> str:
    """Return the split of a file by its name, or else by the name of a folder around it; empty for none."""
    names = (without_shard(inside.name.removesuffix(ending(inside))), *reversed(inside.parts[:-1]))
    return next((name for name in names if _role(name)), "")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, without those of hidden folders."""
    seen = 0
    for place, children, names in os.walk(folder, onerror=_raise_unreadable):
        seen += len(children) + len(names)
        if seen > _MAX_ENTRIES:
            what = f"has over {_MAX_ENTRIES:,} files and folders"
            raise UnlistableFolderError(what, key=str(folder), remedy="name the folder of the data itself")
        children[:] = (child for child in children if not child.startswith((".", "__")))
        yield from (Path(place, name) for name in sorted(names))


def _raise_unreadable(error: OSError) -> None:
    raise UnlistableFolderError(f"cannot be listed ({error.strerror})", key=str(error.filename)) from error


def _settled(files: Sequence[Path], name: str) -> tuple[Path, ...]:
    """Return the files in natural order, once checked to belong together."""
    ordered = sorted(files, key=lambda file: natural(str(file)))
    by_kind: dict[str, list[Path]] = {}
    plain: dict[str, Path] = {}
    for file in ordered:
        by_kind.setdefault(ending(file).removesuffix(".gz"), []).append(file)
        if (twin := plain.setdefault(str(file).removesuffix(".gz"), file)) is not file:
            what = f"{twin.name} and {file.name} are likely the same rows"
            raise CaldpoError(what, key=name, remedy="remove one, or name the other")
    if len(by_kind) > 1:
        counts = ", ".join(f"{len(some):,} {kind} ({some[0].name})" for kind, some in by_kind.items())
        kind = max(by_kind, key=lambda kind: len(by_kind[kind]))
        remedy = f"name the wanted ones by a pattern ('{by_kind[kind][0].parent}/*{kind}') or in a list"
        raise CaldpoError(f"files of several kinds: {counts}", key=name, remedy=remedy)
    require_all_shards(ordered, name)
    return tuple(ordered)


def _saved_files(folder: Path, name: str) -> list[Path]:
    """List the Arrow files of a saved ``Dataset``, in the order of its rows."""
    return _listed(folder / _STATE, lambda state: [file["filename"] for file in state["_data_files"]], name)


def _listed(path: Path, names_in: Callable[[Any], list[str]], name: str) -> list[Path]:
    """Return what a file that ``datasets`` wrote lists of its folder, all of which has to be there.

    Raises:
        CaldpoError: the list cannot be read; its key is ``path``. Or something is missing; its key is ``name``.
    """
    try:
        entries = [str(entry) for entry in names_in(json.loads(path.read_text(encoding="utf-8")))]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CaldpoError(f"cannot be read: {error!r}", key=str(path), remedy="save the data set again") from error
    missing = [entry for entry in entries if Path(entry).name != entry or not (path.parent / entry).exists()]
    if missing or not entries:
        what = f"{len(missing):,} of {len(entries):,} files that {path.name} lists are missing: {list_names(missing)}"
        raise CaldpoError(what, key=name, remedy="copy the whole folder, or save the data set again")
    return [path.parent / entry for entry in entries]
