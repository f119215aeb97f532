"""Files and folders of data that a configuration names, looked for before anything heavy is imported."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from caldpo.config.did_you_mean import section_at
from caldpo.config.path_checks import (
    PathKey,
    find_missing_paths,
    require_folder,
    require_model_folder,
    require_writable_cache,
    text_at,
)
from caldpo.config.validation import Problem
from caldpo.data.data_parts import AUTO, parts_of
from caldpo.data.sources.file_checks import ENDINGS, ending
from caldpo.data.sources.file_discovery import find_files
from caldpo.data.template_checks import read_template
from caldpo.errors import CaldpoError
from caldpo.security.secrets import redact_text
from caldpo.utils.file_names import expanded, is_there

_GENERATED = (".EnvironmentPairs", ".TabularPairs")  # sources that read no files
_SPLITS = ("train", "validation", "test")  # of those


def find_misplaced(cfg: DictConfig) -> Iterator[Problem]:
    """The problems of all paths in a configuration, of data and of all else; one a path, whatever keys refer to it."""
    path, source = text_at(cfg, "data.path"), section_at(cfg, "data.source")
    if source is not None and path is not None and "path" not in source:
        remedy = "choose data=hub with it, or name files: data=local data.train=FILE_OR_FOLDER"
        yield Problem("data.path", redact_text(path), "this source reads no data set of the hub", remedy)
    if source is not None and path is None and "path" in source and text_at(source, "path") is None:
        what = "is required (the id of a data set on the hub, or a folder laid out like one)"
        yield Problem("data.path", None, what, "add data.path=OWNER/NAME to the command line")
    yield from find_missing_paths(cfg, _data_paths(cfg))


def _data_paths(cfg: DictConfig) -> Iterator[PathKey]:
    source = str(text_at(cfg, "data.source._target_"))
    train, test = (find_files, _require_held_out) if source.endswith(".LocalFiles") else (_leave_to_source,) * 2
    if source.endswith(_GENERATED):
        train = test = _refuse_path
    yield PathKey("data.train", train, functools.partial(_names, "data.train"))
    yield PathKey("data.test", test, functools.partial(_names, "data.test"))
    yield PathKey("data.chat_template", read_template)
    yield from (PathKey(key, _require_data_folder) for key in ("data.path", "data.source.path"))
    yield from (PathKey(key, require_model_folder) for key in ("data.source.policy", "data.source.classifier"))
    yield from (PathKey(key, require_writable_cache) for key in ("data.cache", "data.source.cache_dir"))


def _names(key: str, value: Any) -> list[str]:
    return [part.name for part in parts_of(value, key)]


def _require_held_out(name: str) -> None:
    if name != AUTO:
        find_files(name, training=False)


def _refuse_path(name: str) -> None:
    path = expanded(name)
    if "/" in name or ending(path) in ENDINGS or (name not in ("", *_SPLITS) and is_there(path)):
        raise CaldpoError(
            f"is a path, and the embedded data has the splits {', '.join(_SPLITS)}",
            remedy="add data=local, or take a model of your own: model=hf model.path=ID_OR_FOLDER",
        )


def _leave_to_source(name: str) -> Any:
    """Only the source can tell whether it has a split of this name."""


def _require_data_folder(path: str) -> None:
    require_folder(path, "name a folder of data files, or the id of a data set on the hub")
