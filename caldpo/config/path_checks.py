"""Files and folders that a configuration names, looked for before anything heavy is imported.

What is no path of this machine, such as the id of a model on the hub, is left to whoever loads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from caldpo.config.validation import Problem, raise_problems
from caldpo.data.mixtures import AUTO, parts_of
from caldpo.data.sources.file_discovery import find_files
from caldpo.data.sources.file_names import expanded, is_there
from caldpo.data.template_source import read_template
from caldpo.errors import CaldpoError
from caldpo.security.secrets import redact_text

_SPLITS = ("data.train", "data.test")
_WEIGHTS = ("config.json", "adapter_config.json")  # one of them lies in every folder that save_pretrained wrote
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def check_places(cfg: DictConfig) -> None:
    """Whether the files and folders that ``cfg`` names are there.

    Raises:
        CaldpoError: with all problems at once.
    """
    raise_problems(list(find_misplaced(cfg)))


def find_misplaced(cfg: DictConfig) -> Iterator[Problem]:
    """The problems that :func:`check_places` raises; one a path, however many keys refer to it."""
    yield from _of_hub(cfg)
    said: set[tuple[object, str]] = set()
    for key, look in _places(cfg):
        try:
            values = _texts(cfg, key)
        except CaldpoError as error:
            yield Problem(key, error.value_or_none, error.message, error.remedy)
            continue
        for value in values:
            if (look, value) in said:
                continue
            said.add((look, value))
            try:
                look(value)
            except CaldpoError as error:
                yield Problem(key, redact_text(value), error.message, error.remedy)


def _of_hub(cfg: DictConfig) -> Iterator[Problem]:
    """Whether ``data.path`` is given where the source reads a data set of the hub, and only there."""
    path, source = _text(cfg, "data.path"), OmegaConf.select(cfg, "data.source", throw_on_missing=False)
    if not isinstance(source, DictConfig):
        return
    if path is not None and "path" not in source:
        remedy = "choose data=hub with it, or name files: data=local data.train=FILE_OR_FOLDER"
        yield Problem("data.path", redact_text(path), "this source reads no data set of the hub", remedy)
    if path is None and "path" in source and _text(cfg, "data.source.path") is None:
        what = "has to be given: the id of a data set on the hub, or a folder laid out like one"
        yield Problem("data.path", None, what, "add data.path=OWNER/NAME to the command line")


def _places(cfg: DictConfig) -> Iterator[tuple[str, Callable[[str], object]]]:
    """Keys that may name a place, and what raises CaldpoError where it is not as it should be."""
    local = str(_text(cfg, "data.source._target_")).endswith(".LocalFiles")
    yield from zip(_SPLITS, (find_files, _held_out) if local else (_split, _split), strict=True)
    yield "replay", _batch
    yield "data.chat_template", read_template
    yield from ((key, _data_folder) for key in ("data.path", "data.source.path"))
    yield from ((key, _model_folder) for key in ("model.path", "reference.path"))
    yield from ((key, _model_folder) for key in ("data.source.policy", "data.source.classifier"))
    yield "model.tokenizer", _tokenizer_folder
    for key in ("data.cache", "data.source.cache_dir", "model.cache", "reference.cache"):
        yield key, _cache


def _text(cfg: DictConfig, key: str) -> str | None:
    """The value of ``key`` where it is text; a missing or wrong value is somebody else's to report."""
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None
    return value if isinstance(value, str) else None


def _texts(cfg: DictConfig, key: str) -> list[str]:
    """The value of ``key`` where it is text; of ``data.train`` and ``data.test`` all that they name.

    Raises:
        CaldpoError: they name it in no way that is understood.
    """
    found = _text(cfg, key)
    if found is not None or key not in _SPLITS:
        return [] if found is None else [found]
    try:
        value = OmegaConf.select(cfg, key)
        named: Any = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else None
    except OmegaConfBaseException:
        return []
    return [part.name for part in parts_of(named, key)] if isinstance(named, list | dict) else []


def _held_out(name: str) -> None:
    if name != AUTO:
        find_files(name, training=False)


def _split(name: str) -> None:
    """Whether a source has a split of this name, only the source can tell."""


def _batch(path: str) -> None:
    if not is_there(expanded(path)):
        raise CaldpoError("no such file", remedy="name a file of nonfinite_batches/ in a run's folder")


def _folder(path: str, remedy: str) -> Path | None:
    """The folder of this machine that ``path`` names, None where it may be an id of the hub.

    Raises:
        CaldpoError: a path of this machine at which there is no folder.
    """
    there = expanded(path)
    if there.is_dir() if is_there(there) else False:
        return there
    if is_there(there):
        raise CaldpoError("a file, not a folder", remedy=remedy)
    if path.startswith((".", "/", "~")) or path.endswith("/") or path.count("/") > 1:
        raise CaldpoError("there is no such folder", remedy=remedy)
    return None


def _data_folder(path: str) -> None:
    _folder(path, "name a folder of data files, or the id of a data set on the hub")


def _model_folder(path: str) -> None:
    _holding(path, _WEIGHTS, "model")


def _tokenizer_folder(path: str) -> None:
    _holding(path, _TOKENIZER, "tokenizer")


def _holding(path: str, one_of: tuple[str, ...], what: str) -> None:
    remedy = f"name a folder written by save_pretrained, or the id of a {what} on the hub"
    folder = _folder(path, remedy)
    if folder is None:
        return
    if path.startswith("~"):
        raise CaldpoError("~ is not understood here", remedy=f"write {folder}")
    if not any((folder / name).is_file() for name in one_of):
        below = sorted(file.parent.name for name in one_of for file in folder.glob(f"*/{name}"))
        near = f" (did you mean {folder / below[0]}?)" if below else ""
        raise CaldpoError(f"this folder holds no {what}: it has no {' or '.join(one_of)}{near}", remedy=remedy)


def _cache(path: str) -> None:
    """Whether files can be kept in the folder, which need not be there yet."""
    there = expanded(path)
    try:
        nearest = next(p for p in (there, *there.absolute().parents) if is_there(p))
    except (StopIteration, ValueError):
        return
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "is no folder" if not nearest.is_dir() else "cannot be written to"
        raise CaldpoError(f"nothing can be kept there: {nearest} {why}", remedy="name a folder that you may write to")
