"""The data files that one name stands for: a file, a folder, a split of a folder, or a pattern. No heavy imports here.

A folder may be laid out as on the hub (``train.jsonl`` and ``test.jsonl``, ``data/train-00000-of-00003.parquet``,
``train/0000.parquet``), or be one that ``datasets`` wrote with ``save_to_disk``.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from caldpo.config.did_you_mean import suggest
from caldpo.config.find_runs import natural
from caldpo.data.sources import _saved_datasets as _saved
from caldpo.data.sources._file_names import ENDINGS, ending, expanded, is_there, require_file
from caldpo.data.sources._file_shards import require_whole, without_shard
from caldpo.errors import CaldpoError

_TRAIN = frozenset(("train", "training"))
_TEST = frozenset(("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"))
_HELD_OUT = ("test", "validation")  # which of several test splits is taken
_METADATA = frozenset(
    f"{name}.json"
    for name in (
        *("dataset_infos", "dataset_info", "state", "dataset_dict"),
        *("config", "generation_config", "adapter_config"),  # of a model, with its tokenizer's
        *("tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens", "vocab"),
    )
)
_DEPTH = 3  # folders below the named one: owner/subset/split has fewer
_MOST = 20_000  # entries looked at: a home folder is no data set
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Found:
    """Files that are read one after another.

    Args:
        files: in natural order.
        notes: what was taken and left out, where there was a choice; a line each, for a person.
        held_out: the name of the test split that lies beside them; None where there is none.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    held_out: str | None = None


def find_files(name: str, *, training: bool = True) -> Found:
    """The data files that ``name`` stands for.

    Args:
        name: path of a file, of a folder, of a split in a folder (``FOLDER/train_prefs`` where that folder has files of
            this split), or a pattern (``shards/*.parquet``, ``**`` for any depth); ``~`` is understood.
        training: whether a folder has to have a split to train on; else it may hold a test split alone, and no files.

    Raises:
        CaldpoError: nothing of this name, no data files, files of two kinds, a missing shard, a folder of which it
            is not clear what to train on. Its key is ``name``.
    """
    path = expanded(name)
    if is_there(path):
        return _of_folder(path, name, training) if path.is_dir() else Found((require_file(name),))
    if any(mark in name for mark in "*?["):
        return _of_pattern(path, name)
    if "/" in name and not ending(path) and is_there(path.parent) and path.parent.is_dir():
        splits = {split: files for split, files in _splits(path.parent)[0].items() if split}
        if files := splits.get(path.name):
            beside = [path.name.replace("train", other) for other in _HELD_OUT if "train" in path.name]
            held_out = next((str(path.parent / split) for split in beside if split in splits), None)
            return Found(_settled(files, path.parent, name), held_out=held_out)
        if splits:
            known = sorted(splits, key=natural)
            near = suggest(path.name, known)
            raise CaldpoError(
                f"{path.parent} has no split {path.name}{near}", key=name, remedy=f"name one of {_listed(known)}"
            )
    return Found((require_file(name),))  # says what is wrong


def require_split_whole(folder: Path, split: str) -> None:
    """Check that no shard of a split is missing in a folder laid out as on the hub.

    Args:
        folder: that has the files.
        split: a split's name, or a slice of one; the key of the error.

    Raises:
        CaldpoError: naming the missing shards.
    """
    require_whole(_splits(folder)[0].get(split.split("[")[0], []), split)


def _of_folder(folder: Path, name: str, training: bool) -> Found:
    if _saved.is_saved(folder):
        return Found(_saved.saved_files(folder, name))
    if (saved := _saved.saved_splits(folder)) is not None:
        train, held_out, notes = _roles(saved, folder, name, training)
        files = tuple(file for split in train for file in _saved.saved_files(folder / split, name))
        return Found(files, notes, held_out)
    splits, left_out = _splits(folder)
    if not any(splits.values()):
        raise CaldpoError(
            f"the folder has no data files{_there(folder)}",
            key=name,
            remedy=f"name a folder of files that end in {', '.join(ENDINGS)}",
        )
    train, held_out, notes = _roles(splits, folder, name, training)
    files = _settled([file for split in train for file in splits[split]], folder, name)
    shown = [str(file.relative_to(folder)) for file in files]
    told = f"{len(shown):,} files: {shown[0]} to {shown[-1]}" if len(shown) > 1 else f"files: {', '.join(shown)}"
    notes = (told, *notes, *_empty(files))
    if left_out:
        notes = (*notes, f"left out, no data: {_listed(left_out)}")
    return Found(files, notes, held_out)


def _empty(files: Sequence[Path]) -> list[str]:
    """A line about files without a byte, if there are any."""
    names = [file.name for file in files if file.is_file() and not file.stat().st_size]
    return [f"empty files: {_listed(names)}"] if names else []


def _roles(
    splits: Iterable[str], folder: Path, name: str, training: bool
) -> tuple[list[str], str | None, tuple[str, ...]]:
    """The splits to train on, the name of the one to hold out, and what to say of the choice.

    ``""`` stands for the files that belong to no split by their names.
    """
    by_role: dict[str, list[str]] = {"train": [], "test": [], "": []}
    for split in sorted(splits, key=natural):
        by_role[_role(split)].append(split)
    train = by_role["train"] or by_role[""]
    if training and (not train or (len(by_role["train"]) > 1 and "train" not in train)):
        listed = _listed([*by_role["train"], *by_role["test"], *filter(None, by_role[""])])
        first = (by_role["train"] or by_role["test"])[0]
        why = "several splits to train on" if train else "no split to train on"
        remedy = f"name one of them: {folder / first}, for instance"
        raise CaldpoError(f"the folder has {why} ({listed})", key=name, remedy=remedy)
    train = ["train"] if "train" in train else train
    wanted = [split for split in (*_HELD_OUT, *by_role["test"]) if split in by_role["test"]]
    held_out = wanted[0] if wanted else None
    rest = [s for role in by_role.values() for s in role if s and s not in train and s != held_out]
    told = [f"split {_listed(train)}"] if by_role["train"] else []
    told += [f"other splits, left out: {_listed(rest)}"] if rest else []
    if "" in splits and "" not in train:
        told.append("files that belong to no split are left out")
    return train, None if held_out is None else str(folder / held_out), tuple(told)


def _role(split: str) -> str:
    words = set(re.split(r"[-_. \d]+", split.lower()))
    train, test = bool(words & _TRAIN), bool(words & _TEST)
    return "train" if train and not test else "test" if test and not train else ""


def _splits(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The data files of a folder by the split that their names say, and the other files."""
    if (saved := _saved.saved_splits(folder)) is not None:
        return {split: list(_saved.saved_files(folder / split, str(folder / split))) for split in saved}, []
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
    return splits, left_out


def _split_of(inside: Path) -> str:
    """The split that a file belongs to by its name, or else by that of a folder around it; empty for none."""
    names = (without_shard(inside.name.removesuffix(ending(inside))), *reversed(inside.parts[:-1]))
    return next((name for name in names if _role(name)), "")


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder, its own first; of hidden folders none is looked into."""
    seen = 0
    for place, children, names in os.walk(folder, onerror=_cannot_look):
        here = Path(place)
        seen += len(children) + len(names)
        if seen > _MOST:
            raise CaldpoError(
                f"has over {_MOST:,} files and folders", key=str(folder), remedy="name the folder of the data itself"
            )
        too_deep = len(here.relative_to(folder).parts) >= _DEPTH
        children[:] = [] if too_deep else sorted(child for child in children if not child.startswith((".", "__")))
        yield from (here / name for name in sorted(names))


def _cannot_look(error: OSError) -> None:
    raise CaldpoError(f"cannot be looked into ({error.strerror})", key=str(error.filename)) from error


def _of_pattern(pattern: Path, name: str) -> Found:
    every = glob.glob(str(pattern), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
    matched = [Path(match) for match in sorted(every, key=natural)]
    files = [path for path in matched if ending(path) in ENDINGS and path.name not in _METADATA and path.is_file()]
    if not files:
        what = f"matches no data file, but {_listed([str(p) for p in matched])}" if matched else "matches no file"
        base = next(p for p in pattern.parents if not any(mark in str(p) for mark in "*?["))
        there = _there(base) if base.is_dir() else f", and there is no folder {base}"
        raise CaldpoError(f"the pattern {what}{there}", key=name, remedy="mend the pattern, or name files or a folder")
    notes = [f"files: {files[0]}" if len(files) == 1 else f"{len(files):,} files: {files[0]} to {files[-1].name}"]
    if {_role(_split_of(Path(file.name))) for file in files} >= {"train", "test"}:
        notes.append("files of a training split and of a test split are read together")
    notes += _empty(files)
    if rest := [str(path) for path in matched if path not in files]:
        notes.append(f"left out, no data: {_listed(rest)}")
    return Found(_settled(files, None, name), tuple(notes))


def _settled(files: Sequence[Path], folder: Path | None, name: str) -> tuple[Path, ...]:
    """These files in natural order, once they are known to belong together."""
    ordered = sorted(files, key=lambda file: natural(str(file)))
    by_kind: dict[str, list[Path]] = {}
    for file in ordered:
        by_kind.setdefault(ending(file).removesuffix(".gz"), []).append(file)
    if len(by_kind) > 1:
        counted = ", ".join(f"{len(some):,} {kind} ({some[0].name})" for kind, some in by_kind.items())
        kind = max(by_kind, key=lambda kind: len(by_kind[kind]))
        where = ordered[0].parent if folder is None else by_kind[kind][0].parent
        raise CaldpoError(
            f"files of several kinds: {counted}",
            key=name,
            remedy=f"name those that you mean by a pattern ('{where}/*{kind}') or in a list",
        )
    plain: dict[str, Path] = {}
    for file in ordered:
        twin = plain.setdefault(str(file).removesuffix(".gz"), file)
        if twin is not file:
            raise CaldpoError(
                f"{twin.name} and {file.name} are likely the same rows",
                key=name,
                remedy="remove one, or name the other",
            )
    require_whole(ordered, name)
    return tuple(ordered)


def _there(folder: Path) -> str:
    try:
        names = sorted((p.name + "/" * p.is_dir() for p in folder.iterdir()), key=natural)
    except OSError:
        return ""
    return f"; {folder.resolve()} holds {_listed(names)}" if names else f"; {folder.resolve()} is empty"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
