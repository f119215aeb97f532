"""Pin what may change while a run is interrupted: commits of the hub, and the date that chat templates write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from caldpo.utils.notes import print_notes

if TYPE_CHECKING:
    from caldpo.data.datamodule import PairDataModule

# Keys of summary.json
MODEL_COMMIT = "model_commit"  # of a hub model
DATA_COMMIT = "data_commit"  # of a hub data set
DATE = "date"  # day of the run's first start, for chat templates that write it: see caldpo.data.template_clock

_COMMIT = re.compile(r"[0-9a-f]{40}")


@runtime_checkable
class HubSource(Protocol):
    """A source that reads a repository of the hub, whose branches may move."""

    path: str
    revision: str | None

    def commit(self) -> str | None:
        """Return the commit that ``revision`` stands for now; None for a folder, or where the hub cannot be asked."""
        ...

    def pin(self, commit: str) -> None:
        """Read this commit from now on."""
        ...


def pin(model: object, data: PairDataModule, recorded: Mapping[str, Any]) -> dict[str, str]:
    """Pin the sources of a run to the recorded commits and date; in a new run to those of today.

    To be called before the tokenizer loads and before rows are read, which come from the same commits.

    Args:
        model: source of the weights; one that is no :class:`HubSource` has no commit.
        data: whose ``source`` may be one, too.
        recorded: ``summary.json`` of a run that was begun before; empty for a new one.

    Returns:
        Entries to record in ``summary.json``.
    """
    began = first_day(recorded)
    if began is not None:
        data.now = began
    pinned = {
        MODEL_COMMIT: pin_model(model, recorded),
        DATA_COMMIT: _pin(data.source, recorded.get(DATA_COMMIT)),
        DATE: data.now.date().isoformat(),
    }
    return {key: value for key, value in pinned.items() if value is not None}


def pin_model(source: object, recorded: Mapping[str, Any]) -> str | None:
    """Pin a model to the recorded commit, with a note where its branch has moved; return the commit.

    Args:
        source: of the weights.
        recorded: ``summary.json`` of a run that was begun before; empty for a new one.
    """
    commit = recorded.get(MODEL_COMMIT)
    if isinstance(source, HubSource) and _is_commit(commit) and commit != source.revision:
        current = source.commit()
        if current not in (None, commit):
            print_notes(
                [
                    f"{source.revision or 'main'} of {source.path} has moved on to {current}; the run goes on with"
                    f" {commit}, which it began with"
                ]
            )
    return _pin(source, commit)


def first_day(summary: Mapping[str, Any]) -> datetime | None:
    """Parse the day of a run's first start from its ``summary.json``; None where it is not recorded."""
    try:
        return datetime.fromisoformat(summary[DATE])
    except (KeyError, TypeError, ValueError):
        return None


def _pin(source: object, recorded: object) -> str | None:
    if not isinstance(source, HubSource):
        return None
    commit = recorded if _is_commit(recorded) else source.commit()
    if not isinstance(commit, str) or not _is_commit(commit):
        return None
    source.pin(commit)
    return commit


def _is_commit(value: object) -> bool:
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None
