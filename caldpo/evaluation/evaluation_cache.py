"""Share prepared data, models, log-probs and samples among the policies that one command evaluates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedModel

from caldpo.evaluation.evaluation_settings import TargetSettings

Role = Literal["policy", "reference"]


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling; equal ones are drawn once for all suites."""

    prompts: int  # the first distinct held-out ones
    samples: int  # to each
    max_new_tokens: int
    temperature: float  # 0 takes the likeliest token
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
    _models: dict[Role, tuple[str, PreTrainedModel]] = field(default_factory=dict, init=False, repr=False)

    def model(self, role: Role, key: str, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """Return the model of this key, loading it unless it is the last one; keep one model of each role."""
        if role in self._models and self._models[role][0] != key:
            del self._models[role]  # before the next one takes memory
        if role not in self._models:
            self._models[role] = key, load()
        return self._models[role][1]

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the value of this key, computed at the first call."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]
