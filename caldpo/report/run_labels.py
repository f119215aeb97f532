"""What settings are called in tables and figures: the loss, and what tells a setting from the others of that loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from caldpo.report.escaping import one_line
from caldpo.report.run_files import Run

# What a run is called, how it is seeded and what it leaves behind. No loss, model or data is here.
NOT_A_SETTING = ("seed", "name", "export", "logger", "hydra", "trainer.progress_bar")
_MOST = 3  # differing keys that a label names; of more, as few as tell the settings apart
_LONGEST = 28  # characters of a value; of a longer one its end, as paths differ there
_GONE = object()  # a key that a configuration lacks
Aspects = dict[str, list[Any]]  # a value per setting by key


def labels(runs: Sequence[Run], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label per setting, each once, on one line.

    Args:
        runs: one of each setting.
        configs: what of its configuration makes each setting, flat.
    """
    found = [""] * len(runs)
    for loss in dict.fromkeys(run.loss for run in runs):
        places = [place for place, run in enumerate(runs) if run.loss == loss]
        members = [runs[place] for place in places]
        aspects = _enough(_differing(members, [configs[place] for place in places]))
        parts = [_parts(run, aspects, i) for i, run in enumerate(members)]
        for place, label in zip(places, _distinct(one_line(loss), members, aspects, parts), strict=True):
            found[place] = label
    return [f"{label} ({found[:place].count(label) + 1})" if found.count(label) > 1 else label
            for place, label in enumerate(found)]  # fmt: skip


def is_ignored(key: str) -> bool:
    """Whether a key, or an override of it, makes no other setting."""
    return any(key == ignored or key.startswith((f"{ignored}.", f"{ignored}/")) for ignored in NOT_A_SETTING)


def overridden(run: Run) -> dict[str, str]:
    """The overrides that make a setting, by key."""
    keys = {text.partition("=")[0].lstrip("+~"): text for text in run.overrides}
    return {key: text for key, text in keys.items() if key != "loss" and not is_ignored(key)}


def _differing(runs: Sequence[Run], configs: Sequence[Mapping[str, Any]]) -> Aspects:
    """Keys in which settings differ: those of the loss, groups of which another option was chosen, and others.

    What differs because another option was chosen is told by the option.
    """
    groups = dict.fromkeys(name for run in runs for name in run.choices if name != "loss" and not is_ignored(name))
    chosen = {name: [run.choices.get(name) for run in runs] for name in groups}
    options = {name: values for name, values in chosen.items() if len(set(values)) > 1}
    keys = dict.fromkeys(key for config in configs for key in config)
    own: Aspects = {}
    for key in keys:
        values = [config.get(key, _GONE) for config in configs]
        by_option: dict[str, list[Any]] = {}
        for option, value in zip(options.get(key.partition(".")[0], [""] * len(values)), values, strict=True):
            by_option.setdefault(str(option), []).append(value)
        if any(len({_shown(value) for value in several}) > 1 for several in by_option.values()):
            own[key] = values
    of_loss = {key: values for key, values in own.items() if key.startswith("loss.")}
    return of_loss | options | own


def _enough(aspects: Aspects) -> Aspects:
    """All of few aspects; of many, as few of the first ones as tell the settings apart as well as all do."""
    if len(aspects) <= _MOST:
        return aspects
    kept: Aspects = {}
    for key, values in aspects.items():
        if _kinds(kept | {key: values}) > _kinds(kept):
            kept[key] = values
    return kept


def _kinds(aspects: Aspects) -> int:
    return len(set(zip(*(map(_shown, values) for values in aspects.values()), strict=True))) if aspects else 1


def _parts(run: Run, aspects: Aspects, place: int) -> list[str]:
    return [f"{key}={_short(_shown(values[place]))}" for key, values in aspects.items() if values[place] is not _GONE]


def _distinct(loss: str, runs: Sequence[Run], aspects: Aspects, parts: Sequence[Sequence[str]]) -> list[str]:
    """Labels without what a setting has by default, where they tell as much as those with it; else whole values."""
    asked = [overridden(run) for run in runs]
    moved = {key for key in aspects if any(key in given for given in asked)}
    by_hand = [
        [part for part in told if (key := part.partition("=")[0]) not in moved or key in given]
        for told, given in zip(parts, asked, strict=True)
    ]
    whole = [
        [f"{key}={_shown(values[i])}" for key, values in aspects.items() if values[i] is not _GONE]
        for i in range(len(runs))
    ]
    candidates = [[" ".join([loss, *told]) for told in each] for each in (by_hand, parts, whole)]
    return next((labels for labels in candidates if max(Counter(labels).values()) == 1), candidates[0])


def _shown(value: Any) -> str:
    if value is _GONE:
        return ""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return one_line(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"...{text[3 - _LONGEST :]}"
