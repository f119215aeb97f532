"""Read preference data from the Hugging Face hub, or from a local folder laid out like a hub repository."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import datasets
from huggingface_hub import HfApi

from caldpo.config.signatures import validated
from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.sources.file_checks import full_folder_digest, no_rows
from caldpo.data.sources.file_discovery import require_split_shards
from caldpo.errors import CaldpoError

_BATCH = 1000  # rows decoded at a time


class HubDataset(PairSource):
    """Reads splits with ``datasets``; the row format is detected row by row.

    A token for gated data comes from ``HF_TOKEN`` or ``hf auth login``, never from the configuration, so that it cannot
    end up in a run's files. Without network, splits that were loaded before are read from the cache.

    Args:
        path: hub id (``owner/name``) or a local folder of parquet or jsonl files named after their splits.
        config: name of a subset, where the data set has several; None for its only or default one.
        revision: branch, tag or commit; None for the main branch. ``refs/convert/parquet`` is the hub's own
            conversion, for data sets that come as a loading script.
        data_dir: subfolder to read; None for the whole repository.
    """

    @validated
    def __init__(
        self,
        path: str | None,
        config: str | None = None,
        revision: str | None = None,
        data_dir: str | None = None,
    ) -> None:
        if path is None:
            raise CaldpoError(
                "is required (the id of a data set on the hub, or a folder laid out like one)",
                key="data.path",
                remedy="add data.path=OWNER/NAME",
            )
        self.path, self.config, self.revision, self.data_dir = path, config, revision, data_dir
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield the rows of a split, counted from 0, downloading it first where it is not cached.

        Args:
            split: a split's name, or a slice of one (``train_prefs[:1000]``, ``train[10%:]``).

        Raises:
            CaldpoError: no such data set, subset, split or folder, no network or access.
        """
        if (folder := Path(self._location()) / (self.data_dir or "")).is_dir():
            require_split_shards(folder, split)
        return self._rows(self.load(split), split)

    def held_out(self, split: str) -> str | None:
        """Name the split ``test``, or else ``validation``, beside ``train``, as ``test_prefs`` beside ``train_prefs``.

        Raises:
            CaldpoError: as :meth:`rows`.
        """
        named = split.split("[")[0]
        try:
            known = datasets.get_dataset_split_names(
                self._location(), self.config, data_dir=self.data_dir, revision=self.revision
            )
        except Exception as error:  # as in load
            raise self._explained(error, split) from error
        beside = [named.replace("train", other) for other in ("test", "validation") if "train" in named]
        return next((name for name in beside if name in known), None)

    def commit(self) -> str | None:
        """Return the commit that the revision stands for now; None for a folder, or where the hub cannot be reached."""
        if Path(self._location()).is_dir():
            return None
        try:
            return HfApi().dataset_info(self.path, revision=self.revision, timeout=10).sha
        except Exception:  # loading will explain what is wrong, or read the cache
            return None

    def pinned(self, commit: str) -> HubDataset:
        """Return a copy that reads ``commit``."""
        source = copy.copy(self)
        source.revision = commit
        return source

    def load(self, split: str) -> datasets.Dataset:
        """Load a split with ``datasets``; raises as :meth:`rows` does."""
        path = self._location()
        try:
            cache = _cache_of(Path(path)) if Path(path).is_dir() else None
            return datasets.load_dataset(
                path, self.config, data_dir=self.data_dir, split=split, revision=self.revision, cache_dir=cache
            )
        except Exception as error:  # datasets raises a dozen types here, of three libraries
            raise self._explained(error, split) from error

    def _location(self) -> str:
        """Return the folder, where there is one, else the id."""
        folder = Path(self.path).expanduser()
        return str(folder) if folder.is_dir() else self.path

    def _rows(self, split_data: datasets.Dataset, split: str) -> Iterator[RawRow]:
        number = 0
        for batch in split_data.iter(batch_size=_BATCH):
            for values in zip(*batch.values(), strict=True):
                yield RawRow(f"{split}[{number}]", dict(zip(batch, values, strict=True)), table=split)
                number += 1

    def _explained(self, error: Exception, split: str) -> CaldpoError:
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
            error = cast(Exception, error.__cause__)  # the wrapper only says that an error occurred
        detail = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        name = self.path + (f" ({self.config})" if self.config else "")
        if isinstance(error, ValueError) and "corresponds to no data" in detail:
            return no_rows(split)
        if isinstance(error, ValueError) and ("split" in detail or "instruction" in detail):
            return CaldpoError(
                f"no such split of {name}: {detail}",
                key=split,
                remedy="name one of its splits, or a slice like train[:1000]",
            )
        if isinstance(error, ValueError) and "BuilderConfig" in detail:
            return CaldpoError(f"no such subset of {self.path}: {detail}", key="data.source.config", value=self.config)
        if isinstance(error, ValueError) and "Config name is missing" in detail:
            names = detail.partition("available configs: ")[2].partition("]")[0].strip("[")
            return CaldpoError(
                f"the data set {self.path} has several subsets ({names})",
                key="data.source.config",
                remedy="name one of them: data.source.config=NAME",
            )
        if isinstance(error, ValueError) and "save_to_disk" in detail:
            return CaldpoError(
                "one split written by save_to_disk",
                key="data.source.path",
                value=self.path,
                remedy=f"read it as files: data=local data.train={self.path}",
            )
        return CaldpoError(_cause(error, detail), key="data.source.path", value=self.path, remedy=_REMEDY)


def _cache_of(folder: Path) -> str:
    """Name the cache of a folder by its content, since ``datasets`` itself goes by file times alone."""
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"folder-{full_folder_digest(folder)[:32]}")


_REMEDY = (
    "check the name; without network give a local folder of its files with data.source.path=FOLDER; "
    "for gated data accept its terms on the hub and log in with `hf auth login`"
)


def _cause(error: Any, detail: str) -> str:
    if isinstance(error, ConnectionError):
        return f"the hub cannot be reached and the data set is not cached here ({detail})"
    if isinstance(error, FileNotFoundError):
        return f"no such data set or folder, or it has no data files ({detail})"
    if isinstance(error, StopIteration):
        return "one of its files is empty"
    return f"the data set cannot be loaded ({type(error).__name__}: {detail})"
