"""The values of a loss's keys that are worth a search, each with its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``, drawn evenly in their logarithm, or evenly with ``log=False``."""

    low: float
    high: float
    source: str  # paper or repository, or "ours" with the reason
    log: bool = True

    @property
    def override(self) -> str:
        """The values in Hydra's notation, for ``loss.KEY=`` of a searching sweep."""
        interval = f"interval({self.low:g}, {self.high:g})"
        return f"tag(log, {interval})" if self.log else interval


@dataclass(frozen=True, slots=True)
class Choices:
    """Some values, each as likely."""

    values: tuple[float | str | bool, ...]
    source: str

    @property
    def override(self) -> str:
        """The values in Hydra's notation, for ``loss.KEY=`` of a searching sweep."""
        shown = (str(v).lower() if isinstance(v, bool) else str(v) for v in self.values)
        return f"choice({', '.join(shown)})"


SearchSpace = dict[str, Range | Choices]
"""By key of the loss. The learning rate is no key of a loss: a study searches it for all losses alike."""
