"""The interface of a suite: a dataclass of settings that looks at a subject and returns measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
    from caldpo.evaluation.policy_weights import Weights
    from caldpo.evaluation.suite_result import Result


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What ``suite=`` chooses: its fields are the keys of its yaml.

    Adding one: a file here with a subclass, a yaml in ``conf/suite`` whose package is the suite's name, and its test.
    """

    name: ClassVar[str]
    needs_reference: ClassVar[bool] = False

    def check(self) -> None:
        """Look whether it can be had at all, before data and weights.

        Raises:
            CaldpoError: an extra is not installed, an endpoint is not named, ...
        """

    def check_subject(self, subject: EvaluatedPolicy) -> None:
        """Look whether the subject's data will do, before weights load.

        Raises:
            CaldpoError: it lacks what the suite needs.
        """

    def require_rejected(self, subject: EvaluatedPolicy) -> None:
        """Look whether the held-out rows have two responses each.

        Raises:
            CaldpoError: some have a response to imitate and none to compare it with.
        """
        alone = sum(pair.demonstration for pair in subject.texts)
        if alone:
            raise CaldpoError(
                f"compares responses, and {alone:,} of {len(subject.texts):,} held-out rows have a single one",
                key="suite",
                value=self.name,
                remedy="name pairs to look at with data=..., or choose suite=oracle or suite=leaderboard",
            )

    def run(self, subject: EvaluatedPolicy) -> Result:
        """Evaluate."""
        raise NotImplementedError

    @property
    def result(self) -> str:
        """What the results are called: the name of their file."""
        return self.name

    def other_weights(self, subject: EvaluatedPolicy) -> list[Weights]:
        """Weights of the run that results depend on beside the subject's own."""
        return []

    def settings(self) -> dict[str, Any]:
        """The keys that results depend on, for the results' file."""
        return asdict(self)
