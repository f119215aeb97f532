"""Group runs that differ in nothing but their seed, and label the groups by what tells them apart.

Reports call a group a setting.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from caldpo.report.escaping import one_line
from caldpo.report.logged_curve import LoggedCurve
from caldpo.report.run_files import Run

# What a run is called, how it is seeded and what it leaves behind. No loss, model or data is here.
NOT_A_SETTING = ("seed", "name", "notes", "tags", "export", "logger", "hydra", "trainer.progress_bar")
_MOST = 3  # differing keys that a label names; of more, as few as tell the groups apart
_LONGEST = 28  # characters of a value; of a longer one its end, as paths differ there
_ABSENT = object()  # value of a key that a configuration lacks
Differing = dict[str, list[Any]]  # a value per group by key


@dataclass(frozen=True)
class RunGroup:
    """The runs of one configuration."""

    label: str  # the loss, and what else tells it from the others
    loss: str  # its option in its config group
    runs: tuple[Run, ...]  # also those that did not finish
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what of it they share, flat

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs whose figures count."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def seeds(self) -> int:
        """Number of independent seeds that finished."""
        return len(by_seed(self.finished))

    @property
    def started_seeds(self) -> int:
        return len(by_seed(self.runs))

    def finals(self, read: Callable[[Mapping[str, float]], float | None]) -> list[float]:
        """Return one value per seed of a final figure, in the order of the runs; seeds that lack it are left out.

        A seed that was run twice counts once, by its mean: repeats are not independent.
        """
        values = [[v for run in runs if (v := read(run.final)) is not None] for runs in by_seed(self.finished)]
        return [sum(repeats) / len(repeats) for repeats in values if repeats]

    def curves(self, read: Callable[[Mapping[str, LoggedCurve]], dict[int, float]]) -> list[dict[int, float]]:
        """Return one curve per seed; repeats of a seed are averaged where they share steps."""
        means = []
        for runs in by_seed(self.finished):
            curves = [curve for run in runs if (curve := read(run.curves))]
            if len(curves) == 1:
                means += curves
            elif curves:
                steps = sorted(set.intersection(*map(set, curves)))
                means.append({step: sum(curve[step] for curve in curves) / len(curves) for step in steps})
        return means


def by_seed(runs: Iterable[Run]) -> list[list[Run]]:
    """Split the runs of one group by seed; a run without a known seed is a group of its own."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name if run.seed is None else run.seed, []).append(run)
    return list(groups.values())


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Group runs, in the order in which the groups first appear."""
    follows_seed = _keys_that_follow_the_seed(runs)
    members: dict[str, list[Run]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = shared_config(run, follows_seed)
        # A run that failed before its configuration was written is still known by its overrides.
        key = json.dumps([run.loss, config or list(_overridden(run).values())], sort_keys=True, default=str)
        members.setdefault(key, []).append(run)
        configs.setdefault(key, config)
    names = labels([group[0] for group in members.values()], list(configs.values()))
    return [
        RunGroup(label, group[0].loss, tuple(group), config)
        for label, group, config in zip(names, members.values(), configs.values(), strict=True)
    ]


def shared_config(run: Run, follows_seed: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return what of a run's configuration makes its group, flat, as it is written (``${seed}``).

    Where only the resolved configuration was kept, keys that follow the seed and paths into the run's own folder differ
    between runs of a group.
    """
    name = run.folder.name
    return {
        key: "${run}" if isinstance(value, str) and name in value and name in PurePath(value).parts else value
        for key, value in run.config.items()
        if key not in follows_seed and _is_setting(key)
    }


@functools.cache
def _is_setting(key: str) -> bool:
    return not is_within(key, NOT_A_SETTING)


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """List the keys in which configurations differ, with their distinct values in order of appearance.

    A key that a configuration lacks counts as None.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: _distinct(config.get(key) for config in configs) for key in keys}
    return {key: distinct for key, distinct in values.items() if len(distinct) > 1}


def _keys_that_follow_the_seed(runs: Sequence[Run]) -> frozenset[str]:
    """Keys named seed (``data.seed``) that equal the run's own seed in every run: one seed, written twice."""
    keys = {key for run in runs for key in run.config if key.endswith(".seed")}
    return frozenset(k for k in keys if all(r.config[k] == r.seed for r in runs if k in r.config))


def _distinct(values: Iterable[Any]) -> list[Any]:
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:  # values may be lists, which no set holds
            distinct.append(value)
    return distinct


def is_within(key: str, parts: Iterable[str]) -> bool:
    """Tell whether a key, or an override of it, is one of ``parts`` of the configuration or inside one."""
    return any(key == part or key.startswith((f"{part}.", f"{part}/")) for part in parts)


def _overridden(run: Run) -> dict[str, str]:
    """The overrides that make a group, by key."""
    keys = {text.partition("=")[0].lstrip("+~"): text for text in run.overrides}
    return {key: text for key, text in keys.items() if key != "loss" and not is_within(key, NOT_A_SETTING)}


# ---- labels


def labels(runs: Sequence[Run], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Label groups, of each a run and its shared configuration, by the loss and what tells them from others of it.

    Data and model are named where they are not the same for all losses. Of a key the last parts are named, as many as
    no other key of the configurations ends in.
    """
    result = [""] * len(runs)
    names = _short_names({key for config in configs for key in config})
    among_losses = _chosen_options(runs, ("data", "model"))
    for loss in dict.fromkeys(run.loss for run in runs):
        places = [place for place, run in enumerate(runs) if run.loss == loss]
        members = [runs[place] for place in places]
        differing = {option: [values[place] for place in places] for option, values in among_losses.items()}
        differing |= _telling(_differing(members, [configs[place] for place in places]))
        for place, label in zip(places, _labels_of_loss(one_line(loss), members, differing, names), strict=True):
            result[place] = label
    numbered = [f"{label} ({result[:place].count(label) + 1})" for place, label in enumerate(result)]
    return [label if result.count(label) == 1 else other for label, other in zip(result, numbered, strict=True)]


def _differing(runs: Sequence[Run], configs: Sequence[Mapping[str, Any]]) -> Differing:
    """Keys in which groups differ: those of the loss, config groups of which another option was chosen, and others.

    A difference that follows from another option is stated by the option.
    """
    names = dict.fromkeys(name for run in runs for name in run.choices if not is_within(name, ("loss", *NOT_A_SETTING)))
    options = _chosen_options(runs, names)
    if len(set(modifiers := [_modifiers(config) for config in configs])) > 1:
        options["modifier"] = modifiers
    keys = dict.fromkeys(key for config in configs for key in config)
    own: Differing = {}
    for key in keys:
        values = [config.get(key, _ABSENT) for config in configs]
        by_option: dict[str, list[Any]] = {}
        for option, value in zip(options.get(key.partition(".")[0], [""] * len(values)), values, strict=True):
            by_option.setdefault(str(option), []).append(value)
        if any(len({_text(value) for value in several}) > 1 for several in by_option.values()):
            own[key] = values
    of_loss = {key: values for key, values in own.items() if key.startswith("loss.")}
    typed = {key for run in runs for key in _overridden(run)}  # what a person has chosen tells more than what follows
    return of_loss | options | {key: own[key] for key in sorted(own, key=lambda key: key not in typed)}


def _chosen_options(runs: Sequence[Run], groups: Iterable[str]) -> Differing:
    """The options of those config groups of which not all runs chose the same."""
    chosen: Differing = {group: [run.choices.get(group, _ABSENT) for run in runs] for group in groups}
    return {group: options for group, options in chosen.items() if len({*options} - {_ABSENT}) > 1}


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """Shorten each key to its last parts, as many as tell it from all others: ``lr`` of ``optim.lr``."""
    endings = {key: list(itertools.accumulate(reversed(key.split(".")), _joined)) for key in keys}
    counts = Counter(ending for of_key in endings.values() for ending in of_key)
    return {key: next((e for e in of_key if counts[e] == 1), key) for key, of_key in endings.items()}


def _joined(end: str, part: str) -> str:
    return f"{part}.{end}"


def _modifiers(config: Mapping[str, Any]) -> Any:
    """Name the chosen modifiers, of which Hydra keeps no choice since they may be several: ``nll+wpo``."""
    names = dict.fromkeys(key.split(".")[1] for key in config if key.startswith("modifier."))
    return "+".join(sorted(names)) or _ABSENT


def _telling(differing: Differing) -> Differing:
    """All of few keys; of many, as few of the first ones as tell the groups apart as well as all do."""
    if len(differing) <= _MOST:
        return differing
    chosen: Differing = {}
    for key, values in differing.items():
        if _count_distinct(chosen | {key: values}) > _count_distinct(chosen):
            chosen[key] = values
    return chosen


def _count_distinct(differing: Differing) -> int:
    return len(set(zip(*(map(_text, values) for values in differing.values()), strict=True))) if differing else 1


def _labels_of_loss(loss: str, runs: Sequence[Run], differing: Differing, names: Mapping[str, str]) -> list[str]:
    """Labels without what a group has by default, where they tell as much as those with it; else whole values."""
    overridden = [_overridden(run) for run in runs]
    moved = {key for key in differing if any(key in keys for keys in overridden)}

    def parts(place: int, shorten: Callable[[str], str], *, default: bool) -> list[str]:
        return [
            f"{names.get(key, key)}={shorten(_text(values[place]))}"
            for key, values in differing.items()
            if values[place] is not _ABSENT and (default or key not in moved or key in overridden[place])
        ]

    candidates = [
        [" ".join([loss, *parts(place, shorten, default=default)]) for place in range(len(runs))]
        for shorten, default in ((_short, False), (_short, True), (str, True))
    ]
    return next((labels for labels in candidates if max(Counter(labels).values()) == 1), candidates[0])


def _text(value: Any) -> str:
    if value is _ABSENT:
        return ""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return one_line(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"...{text[3 - _LONGEST :]}"
