"""Check the paths that a configuration names before anything heavy is imported: files, folders, names of outputs.

What is no path of this machine, such as the id of a model on the hub, is left to whoever loads it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from caldpo.config.validation import Problem
from caldpo.errors import CaldpoError
from caldpo.security.paths import stays_inside
from caldpo.security.secrets import redact_text
from caldpo.utils.file_names import MODEL_FILES, TOKENIZER_FILES, expanded, is_there, require_enterable, why_unwritable

# parts of the paths of a run's files that a command line can set; all lie below the run's or the sweep's folder
_OUTPUT_NAMES = ("hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.name")


@dataclass(frozen=True)
class PathKey:
    """A dotted key whose value may name a path; its functions raise CaldpoError."""

    key: str
    check: Callable[[str], object]  # of a path
    names: Callable[[Any], list[str]] | None = None  # the paths in a value that is no text


def find_missing_paths(cfg: DictConfig, more: Iterable[PathKey] = ()) -> Iterator[Problem]:
    """Yield the problems of paths of models, caches, a replay and ``more`` keys; one a path, whatever keys name it."""
    seen: set[tuple[object, str]] = set()
    # a key of a section within a section last: it mostly refers to another, which is where the path was given
    for path_key in sorted((*more, *_MODELS_AND_CACHES), key=lambda path_key: path_key.key.count(".")):
        try:
            paths = _paths(cfg, path_key)
        except CaldpoError as error:
            yield Problem(path_key.key, error.value_or_none, error.message, error.remedy)
            continue
        for path in paths:
            if (path_key.check, path) in seen:
                continue
            seen.add((path_key.check, path))
            try:
                path_key.check(path)
            except CaldpoError as error:
                yield Problem(path_key.key, redact_text(path), error.message, error.remedy)


def text_at(cfg: DictConfig, key: str) -> str | None:
    """Select the value of ``key`` where it is text; a missing or wrong value is reported elsewhere."""
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None
    return value if isinstance(value, str) else None


def _paths(cfg: DictConfig, path_key: PathKey) -> list[str]:
    try:
        value = OmegaConf.select(cfg, path_key.key)
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return []  # reported elsewhere
    if isinstance(plain, str):
        return [plain]
    return path_key.names(plain) if path_key.names and isinstance(plain, list | dict) else []


def require_folder(path: str, remedy: str) -> Path | None:
    """Find the folder of this machine that ``path`` names, or raise CaldpoError; None for an id of the hub."""
    place = expanded(path)
    require_enterable(place)
    if is_there(place) and place.is_dir():
        return place
    if is_there(place):
        raise CaldpoError("a file, not a folder", remedy=remedy)
    if path.startswith((".", "/", "~")) or path.endswith("/") or path.count("/") > 1:
        raise CaldpoError("there is no such folder", remedy=remedy)
    return None


def require_model_folder(path: str) -> None:
    """Refuse a folder that holds no model; an id of the hub is none."""
    _require_holding(path, MODEL_FILES, "model")


def _require_holding(path: str, one_of: tuple[str, ...], what: str) -> None:
    remedy = f"name a folder written by save_pretrained, or the id of a {what} on the hub"
    folder = require_folder(path, remedy)
    if folder is None:
        return
    if path.startswith("~"):
        raise CaldpoError("~ is not understood here", remedy=f"write {folder}")
    if not any((folder / name).is_file() for name in one_of):
        below = sorted(file.parent.name for name in one_of for file in folder.glob(f"*/{name}"))
        near = f" (did you mean {folder / below[0]}?)" if below else ""
        raise CaldpoError(f"this folder holds no {what}: it has no {' or '.join(one_of)}{near}", remedy=remedy)


def require_writable_cache(path: str) -> None:
    """Refuse a folder that files cannot be written into; it need not be there yet."""
    if why := why_unwritable(expanded(path)):
        raise CaldpoError(f"nothing can be kept there: {why}", remedy="name a folder that you may write to")


def _require_batch(path: str) -> None:
    require_enterable(path)
    if not is_there(expanded(path)):
        raise CaldpoError("no such file", remedy="name a file of nonfinite_batches/ in a run's folder")


_MODELS_AND_CACHES = (
    PathKey("replay", _require_batch),
    PathKey("adapter.init_from", require_enterable),
    PathKey("model.path", require_model_folder),
    PathKey("reference.path", require_model_folder),
    PathKey("model.tokenizer", functools.partial(_require_holding, one_of=TOKENIZER_FILES, what="tokenizer")),
    PathKey("model.cache", require_writable_cache),
    PathKey("reference.cache", require_writable_cache),
)


def find_escapes(cfg: DictConfig) -> Iterator[Problem]:
    """Yield names of a run's folder and files, and of options, that would lead out of the folder they belong in."""
    for key in _OUTPUT_NAMES:
        name = text_at(cfg, key)
        if name is not None and not stays_inside(name):
            remedy = "write a relative path without .. ; hydra.run.dir and hydra.sweep.dir name the folder itself"
            yield Problem(key, redact_text(name), "leads out of the output folder", remedy)
    for group, option in (OmegaConf.select(cfg, "hydra.runtime.choices") or {}).items():
        if isinstance(option, str) and not stays_inside(option):
            remedy = "choose an option by its name; --config-dir adds a folder with options of your own"
            yield Problem(str(group), redact_text(option), "leads out of the folder of this group", remedy)
