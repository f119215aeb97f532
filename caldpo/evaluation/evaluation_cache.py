"""What the policies of one command share: their settings, prepared data, and what one reference says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from caldpo.evaluation.evaluation_settings import TargetSettings


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; equal ones are drawn once, for all suites.

    Args:
        prompts: held-out prompts, the first distinct ones.
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
    """What the policies of one command share: prepared data, and what one reference says.

    Args:
        settings: of the command.
        reference: hub id or folder of another reference than the runs' own; None takes theirs.
    """

    settings: TargetSettings
    reference: str | None = None
    memory: dict[str, Any] = field(default_factory=dict, repr=False)
    models: dict[str, PreTrainedModel] = field(default_factory=dict, repr=False)

    def model(self, key: str, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """The reference of this name, loaded unless it is the one that was asked for last."""
        if key not in self.models:
            self.models.clear()
            self.models[key] = load()
        return self.models[key]

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gave for this key at its first call."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]
