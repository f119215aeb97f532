"""Pin what may change while a run is interrupted: commits, the date that chat templates write, the machine's memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from caldpo.utils.notes import print_notes

if TYPE_CHECKING:
    from caldpo.data.datamodule import PairDataModule
    from caldpo.models.model_source import ModelSource

# Keys of summary.json
MODEL_COMMIT = "model_commit"  # of a hub model
DATA_COMMIT = "data_commit"  # of a hub data set
TOKEN_BUDGET = "max_tokens_per_micro_batch"  # that data.max_tokens_per_micro_batch=auto stands for
RECOMPUTE_ABOVE = "recompute_above"  # tokens above which a micro-batch recomputes its activations, if any
DATE = "date"  # day of the run's first start, for chat templates that write it: see caldpo.data.chat_template

_COMMIT = re.compile(r"[0-9a-f]{40}")


def pin(model: ModelSource, data: PairDataModule, recorded: Mapping[str, Any]) -> dict[str, str]:
    """Pin the sources of a run to the ``recorded`` commits and date; in a new run to those of today.

    Its micro-batches are cut as they were, too: with the ``recorded`` budget of tokens, on whatever machine it resumes.

    To be called before the tokenizer loads and before rows are read, which come from the same commits.

    Returns:
        Entries to record in ``summary.json``.
    """
    data.now = first_day(recorded) or data.now
    budget = recorded.get(TOKEN_BUDGET)
    data.token_budget = budget if isinstance(budget, int) and budget > 0 else None
    data_commit = _commit(recorded.get(DATA_COMMIT)) or _commit(data.source.commit())
    if data_commit is not None:
        data.pin_source(data_commit)
    pinned = {MODEL_COMMIT: pin_model(model, recorded), DATA_COMMIT: data_commit, DATE: data.now.date().isoformat()}
    return {key: value for key, value in pinned.items() if value is not None}


def pin_model(source: ModelSource, recorded: Mapping[str, Any]) -> str | None:
    """Pin a model to the recorded commit, with a note where its branch has moved; return the commit."""
    repository = source.repository()
    if repository is None:
        return None
    commit = _commit(recorded.get(MODEL_COMMIT))
    if commit is None:
        commit = _commit(repository.commit())
    elif commit != repository.revision and (current := repository.commit()) not in (None, commit):
        branch = f"{repository.revision or 'main'} of {repository.path}"
        print_notes([f"{branch} has moved on to {current}; the run resumes with {commit}, with which it began"])
    if commit is not None:
        repository.pin(commit)
    return commit


def first_day(summary: Mapping[str, Any]) -> datetime | None:
    """Parse the day of a run's first start from its ``summary.json``; None where it is not recorded."""
    try:
        return datetime.fromisoformat(summary[DATE])
    except (KeyError, TypeError, ValueError):
        return None


def _commit(value: object) -> str | None:
    return value if isinstance(value, str) and _COMMIT.fullmatch(value) is not None else None
