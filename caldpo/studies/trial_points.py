"""Which settings a study tries for a loss: its own defaults first, then points spread over its search space.

With few trials, points that are spread evenly (quasi-random; Bousquet et al. 2017, arXiv 1706.03200) do better than
drawn ones, and none waits for another. The first coordinate is the learning rate: all losses are tried at the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import qmc

from caldpo.errors import CaldpoError
from caldpo.losses.search_space import Choices, Range, SearchSpace

Point = dict[str, Any]  # value by configuration key
_DIGITS = 4  # significant ones of a tried number: enough, and short in a file


def quasi_random_points(space: SearchSpace, count: int, seed: int) -> list[Point]:
    """Spread ``count`` points over the space: Halton's sequence, scrambled; more points leave the first as they are."""
    unit = qmc.Halton(len(space), scramble=True, seed=seed).random(count)
    return [
        {key: _value(dimension, float(u)) for (key, dimension), u in zip(space.items(), row, strict=True)}
        for row in unit
    ]


def proposed_point(space: SearchSpace, earlier: Sequence[tuple[Point, float]], seed: int) -> Point:
    """Propose a point by Optuna's TPE (Bergstra et al. 2011) from earlier points and their scores, higher is better.

    Made anew from the records each time, so that nothing but these has to survive a kill; the same records give the
    same point. Earlier points outside the space, such as defaults, are left out.

    Raises:
        CaldpoError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise CaldpoError(
            "needs Optuna, which is not installed",
            key="sampler",
            value="tpe",
            remedy="pip install 'caldpo[search]', or sampler=quasi_random",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(optuna, dimension) for key, dimension in space.items()}
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of adding trials, in the pinned version
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=1))
    for point, score in earlier:
        if all(_contains(space[key], point[key]) for key in space):
            study.add_trial(optuna.trial.create_trial(params=dict(point), distributions=distributions, value=score))
    proposed = study.ask(distributions).params
    return {key: _short(proposed[key]) for key in space}


def as_overrides(point: Mapping[str, Any]) -> list[str]:
    """Write a point as overrides."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in point.items()]


def _value(dimension: Range | Choices, u: float) -> Any:
    """Map ``u`` from [0, 1) to a value."""
    if isinstance(dimension, Choices):
        return dimension.values[min(int(u * len(dimension.values)), len(dimension.values) - 1)]
    if dimension.log:
        low, high = math.log(dimension.low), math.log(dimension.high)
        return _short(math.exp(low + u * (high - low)))
    return _short(dimension.low + u * (dimension.high - dimension.low))


def _short(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _contains(dimension: Range | Choices, value: Any) -> bool:
    if isinstance(dimension, Choices):
        return value in dimension.values
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def _distribution(optuna: Any, dimension: Range | Choices) -> Any:
    if isinstance(dimension, Choices):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    kind = "LogUniformDistribution" if dimension.log else "UniformDistribution"
    return getattr(optuna.distributions, kind)(dimension.low, dimension.high)
