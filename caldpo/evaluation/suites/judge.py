"""Generations judged by a language model: pairwise win rate over the reference or over the data's chosen responses."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from caldpo.config.bounds import NonNegative, NonNegativeInt, Positive, PositiveInt, Share
from caldpo.config.hydra_errors import install
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.judge.cost import Prices
from caldpo.evaluation.judge.endpoint import Endpoint, require_endpoint
from caldpo.evaluation.judge.judge_pairs import Outcome, judge_pairs
from caldpo.evaluation.judge.judge_report import counts, notes, say_spent
from caldpo.evaluation.judge.judge_template import load_template
from caldpo.evaluation.judge.mock_judge import NAME, rehearsal, stand_in_verdicts
from caldpo.evaluation.judge.pair_comparison import JudgeModel, Pair, Question
from caldpo.evaluation.judge.verdict_cache import FILE, Ledger
from caldpo.evaluation.judge.win_rates import rates
from caldpo.evaluation.scored_samples import cut_notes
from caldpo.evaluation.suite_base import Suite
from caldpo.evaluation.suite_result import Measure, Result

Variable = Annotated[
    str, Field(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\Z", description="the name of an environment variable")
]
# how calls are made, and not what is asked
_NOT_TELLING = ("api_key_env", "concurrency", "timeout", "max_retries")


@validated
@dataclass(frozen=True, kw_only=True)
class Judge(Suite):
    """Pairwise win rate by a judge behind an OpenAI-compatible endpoint, each pair asked about in both orders.

    A pair's score is the mean over the two orders (1 won, 1/2 even, 0 lost). A pair of equal texts is even without
    being asked about. A pair of which either order has no readable verdict is left out: the other order alone would
    carry the judge's liking for a place.

    Args:
        base_url: of the endpoint, such as ``http://localhost:8000/v1``.
        model: the judge's name there.
        api_key_env: environment variable that holds the key, which is sent to ``base_url``; None, or a variable that
            is not set: a placeholder is sent, for servers that want none.
        against: ``reference`` compares with the reference's responses, ``chosen`` with the data's.
        prompt: what the judge is asked: ``tldr``, ``hh``, ``general``, or a file with ``$prompt``, ``$first``,
            ``$second`` in it.
        mock: ask a stand-in on this machine instead of a judge.
        prompts: held-out prompts, one response each.
        max_new_tokens: longest response, tokens; None takes the length of the run's own samples.
        temperature: of sampling responses.
        verdict_temperature: of the judge; None leaves it to the endpoint.
        verdict_seed: of the judge, for endpoints that take one; None sends none.
        max_tokens: longest answer of the judge, tokens.
        limit_by: the name under which the endpoint takes that limit.
        concurrency: calls on their way at a time.
        timeout: seconds of one attempt, to the last byte of the answer.
        max_retries: attempts after the first, with the client's back-off.
        price_input, price_output: per million tokens read and written; None states no cost.
        resamples: bootstrap draws of whole prompts.
        confidence: of the intervals.
    """

    name: ClassVar[str] = "judge"

    base_url: str | None = None
    model: str | None = None
    api_key_env: Variable | None = "OPENAI_API_KEY"
    against: Literal["reference", "chosen"] = "reference"
    prompt: str = "general"
    mock: bool = False
    prompts: PositiveInt = 128
    max_new_tokens: PositiveInt | None = None
    temperature: NonNegative = 1.0
    verdict_temperature: NonNegative | None = 0.0
    verdict_seed: NonNegativeInt | None = None
    max_tokens: PositiveInt = 512
    limit_by: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    concurrency: PositiveInt = 8
    timeout: Positive = 60.0
    max_retries: NonNegativeInt = 5
    price_input: NonNegative | None = None
    price_output: NonNegative | None = None
    resamples: PositiveInt = 1000
    confidence: Share = 0.95

    @property
    def result(self) -> str:
        return f"{self.name}_rehearsal" if self.mock else self.name  # which no judge's verdicts are lost to

    def check(self) -> None:
        """Whether the client is installed, the text fits and somebody is named who judges.

        Raises:
            CaldpoError: one of them is not so.
        """
        if importlib.util.find_spec("openai") is None:
            raise CaldpoError("not installed", key="suite", value=self.name, remedy=install("suite", self.name))
        load_template(self.prompt)
        if (self.price_input is None) != (self.price_output is None):
            absent = "judge.price_input" if self.price_input is None else "judge.price_output"
            raise CaldpoError("a cost needs both prices", key=absent, remedy="give it too, 0 where nothing is charged")
        if not self.mock:
            require_endpoint(self.base_url, self.model)

    def check_subject(self, subject: EvaluatedPolicy) -> None:
        """Whether there is something to compare with.

        Raises:
            CaldpoError: there is no reference, and it is asked for.
        """
        if self.against == "reference":
            subject.require_reference(self.name)

    def settings(self) -> dict[str, Any]:
        """The keys that results depend on, and the text that the judge is asked."""
        text = load_template(self.prompt).template
        told = {key: value for key, value in asdict(self).items() if key not in _NOT_TELLING}
        return told | {"prompt_digest": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def run(self, subject: EvaluatedPolicy) -> Result:
        pairs, cut = self._pairs(subject)
        who, ledger = self._who(), Ledger(subject.folder / FILE)
        outcome = judge_pairs(
            pairs,
            load_template(self.prompt),
            who,
            ledger,
            lambda questions: self._endpoint(who, questions, subject),
            concurrency=self.concurrency,
            prices=Prices(self.price_input, self.price_output),
        )
        say_spent(outcome)
        self._require_verdicts(outcome, ledger)
        return Result(
            measures=self._measures(outcome, subject),
            examples=len(pairs),
            details={
                "judge": "rehearsal: no judge was asked" if self.mock else f"{who.model} at {who.base_url}",
                "against": self.against,
                "prompt": self.prompt,
                "parameters": dict(who.parameters),
                "verdicts": FILE,
                "confidence": self.confidence,
                **counts(outcome),
            },
            notes=[*self._rehearsed(subject), *notes(outcome, ledger), *cut],
            settled=not outcome.spent.refused,
        )

    def _measures(self, outcome: Outcome, subject: EvaluatedPolicy) -> dict[str, Measure]:
        opponent = "the reference" if self.against == "reference" else "the chosen response"
        bootstrap = Bootstrap(self.resamples, self.confidence, subject.settings.seed)
        measures = rates(outcome.judged, opponent, bootstrap)
        if not self.mock:
            return measures
        # by the known reward a rehearsal still says something of the policy; by a coin it does not
        known = subject.data.oracle is not None
        return {n: replace(m, main=m.main and known, title=f"{m.title} (rehearsal)") for n, m in measures.items()}

    def _pairs(self, subject: EvaluatedPolicy) -> tuple[list[Pair], list[str]]:
        """What is compared, and a note where many of the policy's responses were cut."""
        sampling = subject.sampling(self.prompts, 1, self.max_new_tokens, self.temperature)
        held_out = subject.held_out(self.prompts)
        ours = subject.samples("policy", sampling)
        if self.against == "reference":
            theirs = [subject.decode(ids) for ids in subject.samples("reference", sampling)]
        else:
            theirs = [prompt.reference for prompt in held_out]
        pairs = [
            Pair(prompt.prompt, subject.decode(ids), other)
            for prompt, ids, other in zip(held_out, ours, theirs, strict=True)
        ]
        return pairs, cut_notes(ours, subject.ends, sampling.max_new_tokens)

    def _who(self) -> JudgeModel:
        parameters: dict[str, Any] = {self.limit_by: self.max_tokens}
        if self.verdict_temperature is not None:
            parameters["temperature"] = self.verdict_temperature
        if self.verdict_seed is not None:
            parameters["seed"] = self.verdict_seed
        if self.mock:
            return JudgeModel(NAME, "stand-in", parameters)
        assert self.base_url is not None  # check() saw to it
        assert self.model is not None
        return JudgeModel(self.base_url.rstrip("/"), self.model, parameters)

    @contextmanager
    def _endpoint(
        self, who: JudgeModel, questions: Mapping[str, Question], subject: EvaluatedPolicy
    ) -> Iterator[Endpoint]:
        with ExitStack() as stack:
            base_url, variable = who.base_url, self.api_key_env
            if self.mock:
                verdicts = stand_in_verdicts(questions.values(), subject.data.oracle)
                base_url, variable = stack.enter_context(rehearsal(verdicts)), None
            endpoint = Endpoint(who, base_url, api_key_env=variable, timeout=self.timeout, max_retries=self.max_retries)
            yield stack.enter_context(closing(endpoint))

    def _rehearsed(self, subject: EvaluatedPolicy) -> list[str]:
        if not self.mock:
            return []
        by = "a coin" if subject.data.oracle is None else "the data's known reward"
        return [f"a rehearsal: no judge was asked, {by} decided in its place (judge.mock=true)"]

    def _require_verdicts(self, outcome: Outcome, ledger: Ledger) -> None:
        """
        Raises:
            CaldpoError: not one pair has a score.
        """
        asked = [entry for entry in outcome.judged if entry.verdicts]  # pairs of equal texts say nothing of the judge
        if not asked or any(entry.score is not None for entry in asked):
            return
        refused = next(iter(outcome.spent.refused.values()), None)
        raise CaldpoError(
            "not one pair has readable verdicts of both orders" + (f"; refused: {refused}" if refused else ""),
            key="judge.model",
            value=self.model,
            remedy=f"read its answers in {ledger.path}; it may need a larger judge.max_tokens, or a text for"
            " judge.prompt that says more plainly how to end",
        )
