"""Define the interface of an evaluation suite, the measures that it returns and where they are saved.

No heavy imports here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from caldpo.errors import CaldpoError
from caldpo.utils.yaml_io import read_json

if TYPE_CHECKING:
    from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
    from caldpo.evaluation.model_loading import Weights

FOLDER = "evaluation"  # of a run's folder; one JSON file per suite
_NOTED_SHARE = 0.05  # of truncated responses, above which a note says so


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of one policy.

    Args:
        value: NaN where it is undefined.
        title: as tables show it.
        unit: of the value.
        meaning: one sentence for a reader who has not seen it before.
        low: lower end of the interval; None without an interval.
        high: upper end of the interval.
        n: number of examples.
        better: the direction that is plainly better; None where there is none.
        main: show it in the tables of a report; the files hold every measure.
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
    """The result of one suite on one policy.

    Args:
        measures: by a short name.
        examples: number of pairs, prompts or questions.
        details: curves, distributions and counts, of plain JSON values.
        notes: caveats that a reader needs beside the measures.
        reusable: skip the suite the next time nothing has changed; False where a rerun may find more, since data or
            an endpoint was out of reach.
    """

    measures: Mapping[str, Measure]
    examples: int
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    reusable: bool = True


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A group of measures that ``suite=`` chooses; its fields are the keys of its yaml.

    To add one: a file in ``evaluation/suites`` with a subclass, a yaml in ``conf/suite`` whose package is the suite's
    name, and a row in ``tests/evaluation/test_suites.py``. Nothing else names a suite.
    """

    name: ClassVar[str]
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = False  # of every held-out pair

    def check(self) -> None:
        """Check settings and installation, before data and weights load.

        Raises:
            CaldpoError: an extra is not installed, a file does not exist, ...
        """

    def check_policy(self, policy: EvaluatedPolicy) -> None:
        """Check the policy's data, before weights load.

        Raises:
            CaldpoError: the data lacks something that the suite needs.
        """
        single = sum(pair.demonstration for pair in policy.texts) if self.needs_rejected else 0
        if single:
            raise CaldpoError(
                f"compares responses, and {single:,} of {len(policy.texts):,} held-out rows have a single one",
                key="suite",
                value=self.name,
                remedy="choose pairs with data=..., or choose suite=oracle or suite=leaderboard",
            )

    def run(self, policy: EvaluatedPolicy) -> Result:
        """Evaluate one policy."""
        raise NotImplementedError

    @property
    def result_name(self) -> str:
        """Name of the results' file, without ``.json``."""
        return self.name

    def other_weights(self, policy: EvaluatedPolicy) -> list[Weights]:
        """Return the weights of the run that results depend on beside the policy's own."""
        return []

    def settings(self) -> dict[str, Any]:
        """Return the keys that results depend on, for the results' file."""
        return asdict(self)


def truncation_notes(responses: Sequence[Sequence[int]], ends: Sequence[int], longest: int) -> list[str]:
    """Note where many of the policy's responses were truncated, since a judge or a reward then misses their end.

    Args:
        responses: token ids of each.
        ends: the ids that end one.
        longest: largest length of a response, tokens.
    """
    share = sum(len(ids) >= longest and ids[-1] not in ends for ids in responses) / max(1, len(responses))
    return [f"{share:.0%} of the policy's responses were cut at {longest} tokens"] if share > _NOTED_SHARE else []


def read_results(folder: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Read a run's ``evaluation/*.json`` by suite; note and leave out the files that cannot be read.

    Args:
        folder: the run's.
        notes: receives one phrase per unreadable file.
    """
    results: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            notes.append(f"{FOLDER}/{path.name} cannot be read: {error}")
            continue
        if isinstance(content, Mapping) and isinstance(content.get("measures"), Mapping):
            results[path.stem] = dict(content)
        else:
            notes.append(f"{FOLDER}/{path.name} holds no measures")
    return results
