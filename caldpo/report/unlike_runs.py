"""Say in which of data, model and steps compared runs are not alike: losses are compared only where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caldpo.report.comparison_facts import choice, unfair_differences, varied
from caldpo.report.escaping import first_of, one_line, shorten
from caldpo.report.grouping import RunGroup, is_within
from caldpo.resume.config_diff import is_ignored
from caldpo.utils.yaml_io import flatten

# parts of the configuration from which the data, and the model, follow
_OF_MODEL = ("model", "adapter", "reference.path")
_OF_DATA = ("data", "trainer.extra.limit_val_batches", "trainer.extra.overfit_batches")
_OF_BATCHES = ("data.micro_batch_size", "data.eval_micro_batch_size", "data.max_tokens_per_micro_batch")
_NAMED = 3  # labels, and values, of a difference that are named

Facts = dict[str, list[Any]]  # a value for each group, by what it is


def unlike(groups: Sequence[RunGroup]) -> list[str]:
    """Describe the differences between finished runs, a line for each of data, model and steps that differ.

    More lines name groups whose seeds ended at different steps, and those of which data and model are not known.
    """
    finished = [group for group in groups if group.finished]
    known = [group for group in finished if not _has_no_configuration(group)]
    beyond = [key for key in unfair_differences(known) if not is_ignored(key) and key not in _OF_BATCHES]

    def configured(sections: Sequence[str]) -> Facts:
        keys = [key for key in beyond if is_within(key, sections)]
        return {key: [group.config.get(key) for group in known] for key in keys}

    chosen: dict[str, Facts] = {
        part: {part: [choice(group.finished, part) for group in known]} for part in ("data", "model")
    }
    pairs: Facts = {f"{split} pairs": [_pairs(group, split) for group in known] for split in ("train", "test")}
    lines = [
        _difference("data", chosen["data"] | configured(_OF_DATA) | pairs, known),
        _difference("model", chosen["model"] | configured(_OF_MODEL), known),
        _difference("optimiser steps", {"optimiser steps": [_steps(group) for group in finished]}, finished),
    ]
    if uneven := [f"{group.label} ({_steps(group)})" for group in finished if len(_ends(group)) > 1]:
        how = "curves go as far as every seed, tables have the last step of each"
        lines.append(f"the seeds of a setting ended at different steps, {first_of(uneven, _NAMED)}: {how}")
    if unknown := [group.label for group in finished if _has_no_configuration(group)]:
        lines.append(f"data and model are not known: {first_of(unknown, _NAMED)} (exported without configuration)")
    return [one_line(line) for line in lines if line is not None]


def _difference(what: str, facts: Facts, groups: Sequence[RunGroup]) -> str | None:
    """Describe the first fact that is not the same for all groups, by its values; name some others. None: all are."""
    differing = [name for name, values in facts.items() if len({str(value) for value in values}) > 1]
    if not differing:
        return None
    first, *others = differing
    labels: dict[str, list[str]] = {}
    for value, group in zip(facts[first], groups, strict=True):
        labels.setdefault("none" if value is None else shorten(str(value), 60), []).append(group.label)
    values = [f"{value} ({_settings(of_value)})" for value, of_value in labels.items()]
    place = "" if first == what else f" by {first}"
    rest = f", and {first_of(others, _NAMED)}" if others else ""
    return f"{what} differ{'s' if what == 'model' else ''}{place}: {first_of(values, _NAMED)}{rest}"


def _settings(labels: Sequence[str]) -> str:
    """List a few settings; count many."""
    return ", ".join(labels) if len(labels) <= _NAMED else f"{len(labels):,} settings"


def _has_no_configuration(group: RunGroup) -> bool:
    """Whether it is of an export that names no key of a section, such as ``loss.beta``."""
    return all(run.exported and not any("." in key for key in run.config) for run in group.finished)


def _pairs(group: RunGroup, split: str) -> str | None:
    return varied(group.finished, lambda run: flatten(run.summary.get("data", {})).get(f"{split}.pairs"))


def _ends(group: RunGroup) -> list[int]:
    """List the distinct last steps of the runs."""
    return sorted({int(end) for run in group.finished if (end := run.summary.get("steps", run.last_step)) is not None})


def _steps(group: RunGroup) -> str:
    early = any(run.summary.get("stopped_early") for run in group.finished)
    return f"{first_of(list(map(str, _ends(group))), _NAMED)}{', stopped early' if early else ''}"
