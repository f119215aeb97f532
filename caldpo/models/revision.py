"""Pin a resumed run to the commits of model and data set that it began with, also if their branch has moved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.console import Console

from caldpo.config.summary_file import known_summary
from caldpo.models.hub_files import commit_of
from caldpo.models.model_source import ModelSource
from caldpo.run_record import DATA_COMMIT, MODEL_COMMIT, note
from caldpo.utils.collectives import is_first_rank

_COMMIT = re.compile(r"[0-9a-f]{40}")


def keep_commit(source: ModelSource, run_dir: Path, *, resumed: bool) -> None:
    """Record which commit a new run loads, and pin a resumed run to it.

    To be called before the tokenizer is loaded, which comes from the same commit.

    Args:
        source: of the model.
        run_dir: the run's folder, with its ``summary.json``.
        resumed: whether the run was begun before.
    """
    repository = source.repository()
    if repository is None:
        return
    path, revision = repository.path, repository.revision
    begun_with = known_summary(run_dir).get(MODEL_COMMIT) if resumed else None
    if isinstance(begun_with, str) and _COMMIT.fullmatch(begun_with):
        if begun_with != revision:
            _print_moved(path, revision, begun_with)
        repository.pin(begun_with)
        return
    commit = commit_of(path, revision)
    if commit is not None and _COMMIT.fullmatch(commit):
        repository.pin(commit)  # also for what is loaded later in this run
        note(run_dir, {MODEL_COMMIT: commit})


def keep_data_commit(source: Any, run_dir: Path, *, resumed: bool) -> None:
    """The same for a data set of the hub; to be called before its rows are read.

    Args:
        source: of the pairs; one that knows no commit is left alone.
        run_dir, resumed: as for :func:`keep_commit`.
    """
    if not hasattr(source, "commit"):
        return
    begun_with = known_summary(run_dir).get(DATA_COMMIT) if resumed else None
    commit = begun_with or source.commit()
    if isinstance(commit, str) and _COMMIT.fullmatch(commit):
        source.revision = commit
        note(run_dir, {DATA_COMMIT: commit})


def _print_moved(path: str, revision: str | None, begun_with: str) -> None:
    now = commit_of(path, revision)
    if now is None or now == begun_with or not is_first_rank():
        return
    Console().print(
        f"note: {revision or 'main'} of {path} has moved on to {now}; the run goes on with {begun_with}, which it"
        " began with",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
