"""Runs that differ in nothing but their seed are one setting; settings get labels that tell them apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from caldpo.report.run_files import Curve, Run
from caldpo.report.run_labels import is_ignored, labels, overridden


@dataclass(frozen=True)
class Setting:
    """The runs of one configuration.

    Attributes:
        label: the loss, and what else tells it from the others.
        loss: the loss's option in its config group.
        runs: all of them, also those that did not finish.
        config: what of their configuration they share, flat.
    """

    label: str
    loss: str
    runs: tuple[Run, ...]
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs whose figures count."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def seeds(self) -> int:
        """Number of independent seeds that finished."""
        return len(by_seed(self.finished))

    def finals(self, read: Callable[[Mapping[str, float]], float | None]) -> list[float]:
        """One value per seed of a final figure, in the order of the runs; seeds that lack it are left out.

        A seed that was run twice counts once, by its mean: repeats are not independent.
        """
        values = [[v for run in runs if (v := read(run.final)) is not None] for runs in by_seed(self.finished)]
        return [sum(repeats) / len(repeats) for repeats in values if repeats]

    def curves(self, read: Callable[[Mapping[str, Curve]], dict[int, float]]) -> list[dict[int, float]]:
        """One curve per seed; repeats of a seed are averaged where they share steps."""
        curves = [[c for run in runs if (c := read(run.curves))] for runs in by_seed(self.finished)]
        return [
            {
                step: sum(c[step] for c in repeats) / len(repeats)
                for step in sorted(set.intersection(*map(set, repeats)))
            }
            for repeats in curves
            if repeats
        ]


def by_seed(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of one setting by seed; a run without a known seed stands for itself."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name if run.seed is None else run.seed, []).append(run)
    return list(groups.values())


def group(runs: Sequence[Run]) -> list[Setting]:
    """The settings of ``runs``, in the order in which they first appear."""
    follows_seed = _keys_that_follow_the_seed(runs)
    groups: dict[str, list[Run]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = setting_config(run, follows_seed)
        # A run that failed before its configuration was written is still known by its overrides.
        known = json.dumps([run.loss, config or list(overridden(run).values())], sort_keys=True, default=str)
        groups.setdefault(known, []).append(run)
        configs.setdefault(known, config)
    names = labels([members[0] for members in groups.values()], list(configs.values()))
    return [
        Setting(label, members[0].loss, tuple(members), config)
        for label, members, config in zip(names, groups.values(), configs.values(), strict=True)
    ]


def setting_config(run: Run, follows_seed: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What of a run's configuration makes its setting, flat.

    The composed configuration is compared as it is written, so that values which only follow the seed or
    the folder (``${seed}``, ``${hydra:runtime.output_dir}``) are the same in every run. ``follows_seed`` and
    paths into the run's own folder say the same where only the resolved configuration was kept.
    """
    return {
        key: "${run}" if isinstance(value, str) and run.folder.name in PurePath(value).parts else value
        for key, value in run.config.items()
        if key not in follows_seed and not is_ignored(key)
    }


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys in which configurations differ, with their distinct values in order of appearance.

    A key that a configuration lacks counts as None.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: _distinct(config.get(key) for config in configs) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def _keys_that_follow_the_seed(runs: Sequence[Run]) -> frozenset[str]:
    """Keys named seed (``data.seed``) that equal the run's own seed in every run: one seed, written twice."""
    named = {key for run in runs for key in run.config if key.endswith(".seed")}
    return frozenset(k for k in named if all(r.config[k] == r.seed for r in runs if k in r.config))


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
