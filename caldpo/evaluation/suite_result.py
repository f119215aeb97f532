"""What a suite finds: measures with their intervals and their meaning, and details to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from caldpo.utils.yaml_io import read_json

FOLDER = "evaluation"  # of a run's folder; a file per suite in it


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of one policy.

    Args:
        value: not a number where it is undefined.
        title: as tables show it.
        unit: of the value.
        meaning: one sentence for a reader who has not seen it before.
        low: lower end of the interval; None where there is none.
        high: its upper end.
        n: examples that it is of.
        better: the direction that is plainly better; None where there is none.
        main: whether it belongs into the tables of a report; every measure is in the files.
    """

    value: float
    title: str
    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    better: Literal["higher", "lower"] | None = None
    main: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one suite says of one policy.

    Args:
        measures: by a short name.
        examples: pairs, prompts or questions that were looked at.
        details: curves, distributions and counts, of plain JSON values.
        notes: what a reader has to know before believing the measures.
        settled: whether the same command would find the same; otherwise it measures anew.
    """

    measures: Mapping[str, Measure]
    examples: int
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    settled: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``evaluation/<suite>.json``."""
        return {
            "examples": self.examples,
            "measures": {name: asdict(measure) for name, measure in self.measures.items()},
            "details": dict(self.details),
            "notes": list(self.notes),
        }


def read_results(folder: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """The contents of a run's ``evaluation/*.json`` by suite; what cannot be read is noted and left out.

    Args:
        folder: the run's.
        notes: takes what was wrong, one phrase a file.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            notes.append(f"{FOLDER}/{path.name} cannot be read: {error}")
            continue
        if isinstance(content, Mapping) and isinstance(content.get("measures"), Mapping):
            found[path.stem] = dict(content)
        else:
            notes.append(f"{FOLDER}/{path.name} holds no measures")
    return found
