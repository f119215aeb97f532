"""Read preference data from the Hugging Face hub, or from a local folder laid out like a hub repository."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import datasets
from huggingface_hub import HfApi, is_offline_mode

from caldpo.config.signatures import validated
from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.sources.file_checks import find_test_split, no_rows
from caldpo.data.sources.file_discovery import require_split_shards
from caldpo.errors import CaldpoError
from caldpo.utils.digests import full_folder_digest
from caldpo.utils.hub_access import access_error, hub_failure

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
        self._require_shards(split)
        return self._rows(self.load(split), split)

    def stream(self, split: str) -> Iterator[RawRow]:
        """Yield the rows of a split as they are downloaded; slices are for data that is loaded whole."""
        if "[" in split:
            raise CaldpoError(
                "a slice of a split cannot be streamed",
                key=split,
                remedy="name the whole split; trainer.max_steps ends the run",
            )
        self._require_shards(split)
        try:
            with self._quick_failure():
                data = datasets.load_dataset(
                    self._location(),
                    self.config,
                    data_dir=self.data_dir,
                    split=split,
                    revision=self.revision,
                    streaming=True,
                )
            for number, row in enumerate(data):
                yield RawRow(f"{split}[{number}]", dict(row), table=split)
        except Exception as error:  # as in load
            raise self._explained(error, split) from error

    def _require_shards(self, split: str) -> None:
        if (folder := Path(self._location()) / (self.data_dir or "")).is_dir():
            require_split_shards(folder, split)

    def file_sizes(self, split: str) -> list[tuple[str, int]]:
        """List the files of a local folder, those of other splits too; a set on the hub has its commit instead."""
        folder = Path(self._location()) / (self.data_dir or "")
        files = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
        return [(str(name), file.stat().st_size) for name, file in files.items() if not _is_hidden(name)]

    def held_out(self, split: str) -> str | None:
        """Name the split ``test``, or else ``validation``, beside ``train``; raises as :meth:`rows` does."""
        named = split.split("[")[0]
        try:
            with self._quick_failure():
                known = datasets.get_dataset_split_names(
                    self._location(), self.config, data_dir=self.data_dir, revision=self.revision
                )
        except Exception as error:  # as in load
            raise self._explained(error, split) from error
        return find_test_split(named, known)

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
            cache = None
            if Path(path).is_dir():  # named by its content: `datasets` itself goes by file times alone
                digest = full_folder_digest(Path(path))[:32]
                cache = str(Path(datasets.config.HF_DATASETS_CACHE) / f"folder-{digest}")
            with self._quick_failure():
                return datasets.load_dataset(
                    path, self.config, data_dir=self.data_dir, split=split, revision=self.revision, cache_dir=cache
                )
        except Exception as error:  # datasets raises a dozen types here, of three libraries
            raise self._explained(error, split) from error

    def column(self, split: str, name: str) -> Sequence[Any]:
        """Load one column of a split.

        Raises:
            CaldpoError: as :meth:`rows`, or there is no such column.
        """
        data = self.load(split)
        if name not in data.column_names:
            raise CaldpoError(
                f"has no column `{name}` (but {', '.join(data.column_names)})", key="data.source.path", value=self.path
            )
        return data[name]

    def _location(self) -> str:
        """Return the folder, where there is one, else the id."""
        folder = Path(self.path).expanduser()
        return str(folder) if folder.is_dir() else self.path

    @contextmanager
    def _quick_failure(self) -> Iterator[None]:
        """Have ``datasets`` read only its cache where the hub cannot be reached, instead of retrying for 20 s."""
        if Path(self._location()).is_dir() or is_offline_mode():
            yield
            return
        failure, before = hub_failure(self.path, self.revision, "dataset"), datasets.config.HF_HUB_OFFLINE
        datasets.config.HF_HUB_OFFLINE = before or failure is not None
        try:
            yield
        except (ConnectionError, FileNotFoundError) as error:
            if failure is None:
                raise
            raise access_error(failure, self.path, self.revision, key="data.source.path") from error
        finally:
            datasets.config.HF_HUB_OFFLINE = before

    def _rows(self, split_data: datasets.Dataset, split: str) -> Iterator[RawRow]:
        number = 0
        for batch in split_data.iter(batch_size=_BATCH):
            for values in zip(*batch.values(), strict=True):
                yield RawRow(f"{split}[{number}]", dict(zip(batch, values, strict=True)), table=split)
                number += 1

    def _explained(self, error: Exception, split: str) -> CaldpoError:
        if isinstance(error, CaldpoError):
            return error
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
            error = cast(Exception, error.__cause__)  # the wrapper only says that an error occurred
        detail = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        wrong = detail if isinstance(error, ValueError) else ""
        if "corresponds to no data" in wrong:
            return no_rows(split)
        if "split" in wrong or "instruction" in wrong:
            name = self.path + (f" ({self.config})" if self.config else "")
            remedy = "name one of its splits, or a slice like train[:1000]"
            return CaldpoError(f"no such split of {name}: {detail}", key=split, remedy=remedy)
        if "BuilderConfig" in wrong or "Config name is missing" in wrong:
            return CaldpoError(
                f"not one of the subsets of {self.path}: {detail}",
                key="data.source.config",
                value=self.config,
                remedy="name one of them: data.source.config=NAME",
            )
        remedy = f"read it as files: data=local data.train={self.path}" if "save_to_disk" in wrong else _REMEDY
        causes: dict[type[Exception], str] = {
            ConnectionError: "the hub cannot be reached and the data set is not cached here",
            FileNotFoundError: "no such data set or folder, or it has no data files",
            StopIteration: "one of its files is empty",
        }
        cause = next(
            (text for kind, text in causes.items() if isinstance(error, kind)), "the data set cannot be loaded"
        )
        what = f"{cause} ({type(error).__name__}: {detail})"
        return CaldpoError(what, key="data.source.path", value=self.path, remedy=remedy)


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


_REMEDY = (
    "check the name; without network give a local folder of its files with data.source.path=FOLDER; "
    "for gated data accept its terms on the hub and log in with `hf auth login`"
)
