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


class UnsuitableDataError(CaldpoError):
    """A suite that these held-out pairs have no measures for, whatever its keys; other suites are not affected."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of one policy."""

    value: float  # NaN where it is undefined
    title: str
    unit: str
    meaning: str  # one sentence for a reader who has not seen it before
    low: float | None = None  # ends of the interval, if it has one
    high: float | None = None
    n: int | None = None  # examples
    better: Literal["higher", "lower"] | None = None  # None where no direction is plainly better
    main: bool = False  # shown in the tables of a report; the files hold every measure


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one suite on one policy, as ``evaluation/SUITE.json`` holds it."""

    measures: Mapping[str, Measure]  # by a short name
    examples: int  # pairs, prompts or questions
    details: Mapping[str, Any] = field(default_factory=dict)  # curves, distributions and counts: plain JSON values
    notes: Sequence[str] = ()  # caveats that a reader needs with the measures
    # False: run the suite again the next time, since data or an endpoint was out of reach
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
        """Refuse missing extras, files and settings, before data and weights load."""

    def check_policy(self, policy: EvaluatedPolicy) -> None:
        """Refuse a policy whose data lacks something that the suite needs, before weights load.

        Raises:
            UnsuitableDataError: the other suites are measured without this one.
            CaldpoError: something that can be mended, and ends the evaluation of this policy.
        """
        paired = (pair.has_chosen and pair.has_rejected for pair in policy.texts)
        single = len(policy.texts) - sum(paired) if self.needs_rejected else 0
        if single:
            raise UnsuitableDataError(
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
        """Return the weights of the run that results depend on besides the policy's own."""
        return []

    def settings(self) -> dict[str, Any]:
        """Return the keys that results depend on, for the results' file."""
        return asdict(self)


def truncation_notes(responses: Sequence[Sequence[int]], ends: Sequence[int], longest: int) -> list[str]:
    """Note where many of the policy's responses (token ids) were truncated: a judge or a reward misses their end."""
    share = sum(len(ids) >= longest and ids[-1] not in ends for ids in responses) / max(1, len(responses))
    return [f"{share:.0%} of the policy's responses were cut at {longest} tokens"] if share > _NOTED_SHARE else []


def read_results(folder: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Read a run's ``evaluation/*.json`` by suite; leave out unreadable files, each with a phrase in ``notes``."""
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
