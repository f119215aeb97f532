"""Runs that differ in nothing but their seed are one setting; settings get labels that tell them apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from caldpo.compare.run import Curve, Run

# What a run is called, how it is seeded and what it leaves behind. No loss, model or data is here.
NOT_A_SETTING = ("seed", "name", "export", "logger", "hydra", "trainer.progress_bar")


@dataclass(frozen=True)
class Setting:
    """The runs of one configuration.

    Attributes:
        label: the loss, and what else tells it from the others.
        loss: the loss's option in its config group.
        runs: all of them, also those that did not finish.
    """

    label: str
    loss: str
    runs: tuple[Run, ...]

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
            {step: sum(c[step] for c in repeats) / len(repeats) for step in sorted(set.intersection(*map(set, repeats)))}
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
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    members = list(groups.values())
    return [
        Setting(label, group[0].loss, tuple(group)) for label, group in zip(_labels(members), members, strict=True)
    ]


def setting_config(run: Run) -> dict[str, Any]:
    """What of a run's configuration makes its setting.

    The composed configuration is compared as it is written, so that values which only follow the seed or
    the folder (``${seed}``, ``${hydra:runtime.output_dir}``) are the same in every run. Where only the
    resolved one was kept, values that repeat the seed under a key named seed, and paths into the run's own
    folder, are taken for such.
    """
    config = {key: value for key, value in run.config.items() if not _is_ignored(key)}
    for key, value in config.items():
        if key.rpartition(".")[2] == "seed" and run.seed is not None and value == run.seed:
            config[key] = "${seed}"
        elif isinstance(value, str) and run.folder.name in PurePath(value).parts:
            config[key] = "${run}"
    return config


def differences(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """Configuration keys in which settings differ, with their distinct values in order of appearance.

    A key that a run lacks counts as None.
    """
    configs = [setting_config(run) for run in runs]
    values = {key: _distinct(config.get(key) for config in configs) for config in configs for key in config}
    return {key: found for key, found in values.items() if len(found) > 1}


def _identity(run: Run) -> str:
    # A run that failed before its configuration was written is still known by its overrides.
    known = setting_config(run) or {"overrides": _telling_overrides(run)}
    return json.dumps([run.loss, known], sort_keys=True, default=str)


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The loss and the overrides in which groups differ; where that leaves two alike, what else differs."""
    overrides = [_telling_overrides(runs[0]) for runs in groups]
    shared = set.intersection(*map(set, overrides)) if overrides else set()
    labels = [
        " ".join([runs[0].loss, *(o for o in given if o not in shared)])
        for runs, given in zip(groups, overrides, strict=True)
    ]
    for label in [label for label, count in Counter(labels).items() if count > 1]:
        places = [i for i, other in enumerate(labels) if other == label]
        keys = differences(groups[i][0] for i in places)
        for number, i in enumerate(places, start=1):
            config = setting_config(groups[i][0])
            told = [f"{key}={config.get(key)}" for key in keys][:3]
            labels[i] = " ".join([label, *(told if len(keys) <= 3 else []), *([] if 0 < len(keys) <= 3 else [f"({number})"])])
    return labels


def _telling_overrides(run: Run) -> list[str]:
    return [text for text in run.overrides if not _is_ignored(key := text.partition("=")[0].lstrip("+~")) and key != "loss"]


def _is_ignored(key: str) -> bool:
    return any(key == ignored or key.startswith((f"{ignored}.", f"{ignored}/")) for ignored in NOT_A_SETTING)


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
