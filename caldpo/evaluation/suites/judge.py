"""Judge samples by a language model: pairwise win rate over the reference or over the data's chosen responses."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from caldpo.config.bounds import NonNegative, NonNegativeInt, Positive, PositiveInt, Share
from caldpo.config.extras import install
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.judge.endpoint import Endpoint, require_endpoint
from caldpo.evaluation.judge.judge_pairs import Ask, Judgement, judge_pairs
from caldpo.evaluation.judge.mock_judge import NAME, mock_answer
from caldpo.evaluation.judge.pair_comparison import JudgeModel, Pair, load_template
from caldpo.evaluation.judge.verdict_cache import FILE, VerdictCache
from caldpo.evaluation.judge.win_rates import rate_measures
from caldpo.evaluation.suite_base import Measure, Result, Suite, truncation_notes

Variable = Annotated[
    str, Field(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\Z", description="the name of an environment variable")
]
_NO_EFFECT = ("api_key_env", "concurrency", "timeout", "max_retries")  # keys that verdicts do not depend on


@validated
@dataclass(frozen=True, kw_only=True)
class Judge(Suite):
    """Pairwise win rate by a judge behind an OpenAI-compatible endpoint, each pair asked about in both orders.

    A pair's score is the mean over the two orders (1 won, 1/2 tie, 0 lost). A pair of identical responses is a tie and
    is not sent. A pair without a readable verdict of both orders is left out: a single order has the judge's position
    bias. ``conf/suite/judge.yaml`` explains the keys.
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
    def result_name(self) -> str:
        return f"{self.name}_mock" if self.mock else self.name  # never overwrites a real judge's results

    def check(self) -> None:
        if importlib.util.find_spec("openai") is None:
            raise CaldpoError("not installed", key="suite", value=self.name, remedy=install("suite", self.name))
        load_template(self.prompt)
        if self._prices is None and (self.price_input, self.price_output) != (None, None):
            missing = "judge.price_input" if self.price_input is None else "judge.price_output"
            raise CaldpoError("a cost needs both prices", key=missing, remedy="set it too, 0 where nothing is charged")
        if not self.mock:
            require_endpoint(self.base_url, self.model)

    def check_policy(self, policy: EvaluatedPolicy) -> None:
        if self.against == "reference":
            policy.require_reference(self.name)
        elif lacking := [held_out.origin for held_out in policy.held_out(self.prompts) if not held_out.reference]:
            raise CaldpoError(
                f"compares with chosen responses, and {len(lacking):,} held-out prompts have none, first {lacking[0]}",
                key="judge.against",
                value=self.against,
                remedy="set judge.against=reference, or choose other held-out data with data.test",
            )

    @property
    def _prices(self) -> tuple[float, float] | None:
        if self.price_input is None or self.price_output is None:
            return None
        return self.price_input, self.price_output

    def settings(self) -> dict[str, Any]:
        """Return the keys that results depend on, and a digest of the question's template."""
        text = load_template(self.prompt).template
        keys = {key: value for key, value in asdict(self).items() if key not in _NO_EFFECT}
        return keys | {"prompt_digest": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def run(self, policy: EvaluatedPolicy) -> Result:
        pairs, truncated = self._pairs(policy)
        judge = self._judge_model()
        cache = VerdictCache(policy.folder / FILE, judge)
        with self._connected(judge, policy) as ask:
            judgement = judge_pairs(
                pairs,
                load_template(self.prompt),
                cache,
                ask,
                concurrency=1 if self.mock else self.concurrency,  # a known reward need not be safe in threads
                prices=self._prices,
            )
        self._require_verdicts(judgement, cache)
        decided_by = "a coin" if policy.data.oracle is None else "the data's known reward"
        mock_notes = [f"no judge was asked: {decided_by} decided in its place (judge.mock=true)"] if self.mock else []
        return Result(
            measures=self._measures(judgement, policy),
            examples=len(pairs),
            details={
                "judge": "mock judge" if self.mock else f"{judge.model} at {judge.base_url}",
                "against": self.against,
                "prompt": self.prompt,
                "parameters": dict(judge.parameters),
                "verdicts": FILE,
                "confidence": self.confidence,
                **judgement.details(),
            },
            notes=[*mock_notes, *judgement.notes(cache), *truncated],
            reusable=not judgement.refused,
        )

    def _measures(self, judgement: Judgement, policy: EvaluatedPolicy) -> dict[str, Measure]:
        opponent = "the reference" if self.against == "reference" else "the chosen response"
        bootstrap = Bootstrap(self.resamples, self.confidence, policy.settings.seed)
        measures = rate_measures(judgement.pairs, opponent, bootstrap)
        if not self.mock:
            return measures
        # by the known reward a mock judge still measures the policy; by a coin it does not
        known = policy.data.oracle is not None
        return {n: replace(m, main=m.main and known, title=f"{m.title} (mock)") for n, m in measures.items()}

    def _pairs(self, policy: EvaluatedPolicy) -> tuple[list[Pair], list[str]]:
        """Return the pairs to compare, and a note where many of the policy's responses were truncated."""
        sampling = policy.sampling(self.prompts, 1, self.max_new_tokens, self.temperature)
        held_out = policy.held_out(self.prompts)
        responses = policy.samples("policy", sampling)
        if self.against == "reference":
            opponents = [policy.decode(ids) for ids in policy.samples("reference", sampling)]
        else:
            opponents = [prompt.reference for prompt in held_out]
        pairs = [
            Pair(prompt.prompt, policy.decode(ids), opponent)
            for prompt, ids, opponent in zip(held_out, responses, opponents, strict=True)
        ]
        return pairs, truncation_notes(responses, policy.ends, sampling.max_new_tokens)

    def _judge_model(self) -> JudgeModel:
        parameters = {
            self.limit_by: self.max_tokens,
            "temperature": self.verdict_temperature,
            "seed": self.verdict_seed,
        }
        sent = {name: value for name, value in parameters.items() if value is not None}
        if self.mock:
            return JudgeModel(NAME, NAME, sent)
        assert self.base_url is not None  # by check()
        assert self.model is not None
        return JudgeModel(self.base_url.rstrip("/"), self.model, sent)

    @contextmanager
    def _connected(self, judge: JudgeModel, policy: EvaluatedPolicy) -> Iterator[Ask]:
        if self.mock:
            yield partial(mock_answer, reward=policy.data.oracle)
            return
        endpoint = Endpoint(judge, api_key_env=self.api_key_env, timeout=self.timeout, max_retries=self.max_retries)
        with closing(endpoint):
            yield endpoint.ask

    def _require_verdicts(self, judgement: Judgement, cache: VerdictCache) -> None:
        asked = [entry for entry in judgement.pairs if entry.verdicts]  # identical responses are not sent
        if not asked or any(entry.score is not None for entry in asked):
            return
        refused = next(iter(judgement.refused.values()), None)
        raise CaldpoError(
            "no pair has readable verdicts of both orders" + (f"; refused: {refused}" if refused else ""),
            key="judge.model",
            value=self.model,
            remedy=f"read its answers in {cache.path}; it may need a larger judge.max_tokens, or a template for"
            " judge.prompt that describes the last line more plainly",
        )
