"""Share prepared data, the reference and its outputs among the policies that one command evaluates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from caldpo.evaluation.evaluation_settings import TargetSettings


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling; equal ones are drawn once for all suites.

    Args:
        prompts: number of held-out prompts, the first distinct ones.
        samples: responses to each.
        max_new_tokens: longest response, tokens.
        temperature: of plain sampling; 0 takes the likeliest token.
        seed: of the sampling.
    """

    prompts: int
    samples: int
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass
class EvaluationCache:
    """What the policies of one command have in common.

    Args:
        settings: of the command.
        reference: hub id or folder of another reference than the runs' own; None takes theirs.
    """

    settings: TargetSettings
    reference: str | None = None
    _values: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _models: dict[str, PreTrainedModel] = field(default_factory=dict, init=False, repr=False)

    def model(self, key: str, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """Return the reference model of this key, loading it unless it is the last one; keep one model at a time."""
        if key not in self._models:
            self._models.clear()
            self._models[key] = load()
        return self._models[key]

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the value of this key, computed at the first call."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]
