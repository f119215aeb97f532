"""Generations scored by the known reward: what the policy earns, and how far it moved from the reference for it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from caldpo.config.bounds import NonNegative, PositiveInt, Share
from caldpo.config.signatures import validated
from caldpo.data.pair import TokenizedPair
from caldpo.data.sources.sentiment_reward import SentimentReward
from caldpo.errors import CaldpoError
from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.evaluation.fluency import score_texts
from caldpo.evaluation.policy_weights import Weights
from caldpo.evaluation.scored_samples import SAMPLES, Outcome, cut_notes, write_samples
from caldpo.evaluation.suite_base import Suite
from caldpo.evaluation.suite_result import Measure, Result
from caldpo.evaluation.true_rewards import true_rewards, wins

Values = NDArray[np.float64]


@validated
@dataclass(frozen=True, kw_only=True)
class Oracle(Suite):
    """True reward, win rate over the reference, sequence KL and perplexity of samples, over checkpoints if asked.

    The KL is the mean log-ratio of the policy's own samples at temperature 1: unbiased, and 0 in expectation only where
    the two are the same. At another temperature samples are not the policy's, and it is left out.

    Args:
        prompts: held-out prompts.
        samples: responses to each.
        max_new_tokens: longest response, tokens; None takes the length of the run's own samples.
        temperature: of plain sampling from the whole distribution.
        checkpoints: ``all`` also samples every checkpoint that the run kept: the path from reference to policy.
        classifier: hub id or folder of a sentiment classifier whose log-odds are the reward; None takes the data's own.
        positive_label: the classifier's name for the positive class.
        perplexity_model: hub id or folder of the model that says how likely the texts are; None takes the reference.
        resamples: bootstrap draws of whole prompts.
        confidence: of the intervals.
    """

    name: ClassVar[str] = "oracle"
    needs_reference: ClassVar[bool] = True

    prompts: PositiveInt = 256
    samples: PositiveInt = 1
    max_new_tokens: PositiveInt | None = None
    temperature: NonNegative = 1.0
    checkpoints: Literal["final", "all"] = "final"
    classifier: str | None = None
    positive_label: str = "POSITIVE"
    perplexity_model: str | None = None
    resamples: PositiveInt = 1000
    confidence: Share = 0.95

    def check_subject(self, subject: EvaluatedPolicy) -> None:
        """Whether there is a reward, and checkpoints where they are asked for.

        Raises:
            CaldpoError: there is not.
        """
        if self.classifier is None and subject.data.oracle is None:
            raise CaldpoError(
                f"the true reward of a response is not known on this data ({subject.data.source.name})",
                key="suite",
                value=self.name,
                remedy="use data with a known reward (reviews, tabular, imdb), name a classifier by oracle.classifier,"
                " or ask a judge: suite=judge",
            )
        if self.checkpoints == "all" and not subject.target.checkpoints():
            raise CaldpoError(
                f"{subject.target.name} kept no checkpoints",
                key="oracle.checkpoints",
                value="all",
                remedy="use oracle.checkpoints=final, or train with callbacks.checkpoint.every=N"
                " callbacks.checkpoint.keep=all",
            )
        if self.classifier is not None:
            self._scorer(subject)  # small beside a policy, and learnt of before that loads

    def other_weights(self, subject: EvaluatedPolicy) -> list[Weights]:
        return self._earlier(subject)

    def run(self, subject: EvaluatedPolicy) -> Result:
        sampling = subject.sampling(self.prompts, self.samples, self.max_new_tokens, self.temperature)
        bootstrap = Bootstrap(self.resamples, self.confidence, subject.settings.seed)
        prompts = [h.prompt_ids for h in subject.held_out(self.prompts)]
        clusters = [i for i in range(len(prompts)) for _ in range(self.samples)]
        points = [self._point(subject.at(weights), sampling) for weights in self._earlier(subject)]
        outcome = self._outcome(subject, sampling)
        measures = self._measures(outcome, bootstrap, clusters)
        measures["perplexity"] = self._perplexity(subject, outcome, bootstrap, clusters)
        measures |= exact_measures(subject)
        write_samples(subject.folder / SAMPLES, outcome)
        points = [*self._start(subject, outcome), *points, self._summed_up(subject.weights.step, outcome)]
        kl = (
            []
            if self._samples_are_the_policys
            else ["samples of another temperature than 1 are not the policy's: no KL"]
        )
        long = cut_notes(subject.samples("policy", sampling), subject.ends, sampling.max_new_tokens)
        return Result(
            measures=measures,
            examples=len(outcome.reward),
            details={
                "points": points,
                "prompts": len(prompts),
                "samples": self.samples,
                "max_new_tokens": sampling.max_new_tokens,
                "reward": self.classifier or f"of the data: {subject.data.source.name}",
                "perplexity_model": self.perplexity_model or subject.reference_identity,
                "confidence": self.confidence,
            },
            notes=[*kl, *long],
        )

    @property
    def _samples_are_the_policys(self) -> bool:
        return self.temperature == 1

    def _earlier(self, subject: EvaluatedPolicy) -> list[Weights]:
        """The checkpoints before the policy itself."""
        if self.checkpoints == "final":
            return []
        end = subject.weights.step
        return [Weights(step, path) for step, path in subject.target.checkpoints().items() if end is None or step < end]

    def _start(self, subject: EvaluatedPolicy, outcome: Outcome) -> list[dict[str, Any]]:
        """Where the path begins: the reference, if training started from it."""
        if self.checkpoints == "final" or not subject.starts_from_reference:
            return []
        return [{"step": 0, "reward": float(outcome.baseline.mean()), "kl": 0.0, "win_rate": 0.5}]

    def _point(self, subject: EvaluatedPolicy, sampling: Sampling) -> dict[str, Any]:
        return self._summed_up(subject.weights.step, self._outcome(subject, sampling))

    def _summed_up(self, step: int | None, outcome: Outcome) -> dict[str, Any]:
        kl = {"kl": float(outcome.own.mean())} if self._samples_are_the_policys else {}
        rate = float(wins(outcome.reward - outcome.baseline).mean())
        return {"step": step, "reward": float(outcome.reward.mean()), **kl, "win_rate": rate}

    def _outcome(self, subject: EvaluatedPolicy, sampling: Sampling) -> Outcome:
        asked = [h for h in subject.held_out(self.prompts) for _ in range(self.samples)]
        ours, theirs = subject.samples("policy", sampling), subject.samples("reference", sampling)
        pairs = [
            TokenizedPair(h.prompt_ids, a, b, None, None, i, "")
            for i, (h, a, b) in enumerate(zip(asked, ours, theirs, strict=True))
        ]
        by_policy = subject.logps("policy", pairs, "samples of both")
        by_reference = subject.logps("reference", pairs, "samples of both")
        ratios = by_policy - by_reference
        prompts = [subject.prompt_text(h) for h in asked]
        texts, other_texts = ([subject.decode(ids) for ids in side] for side in (ours, theirs))
        return Outcome(
            reward=self._rewards(subject, prompts, texts),
            baseline=subject.bench.once(
                f"rewards {self.classifier} {self.positive_label} {subject.sampled_as(sampling)}",
                lambda: self._rewards(subject, prompts, other_texts),
            ),
            own=ratios[0],
            theirs=ratios[1],
            under_reference=by_reference[0],
            prompts=prompts,
            texts=texts,
            other_texts=other_texts,
            tokens=np.array([len(ids) for ids in ours], dtype=np.float64),
            ended=np.array([ids[-1] in subject.ends for ids in ours]),
        )

    def _rewards(self, subject: EvaluatedPolicy, prompts: Sequence[str], texts: Sequence[str]) -> Values:
        if self.classifier is None:
            return true_rewards(subject.data, prompts, texts)
        return np.array(self._scorer(subject)([prompt + text for prompt, text in zip(prompts, texts, strict=True)]))

    def _scorer(self, subject: EvaluatedPolicy) -> SentimentReward:
        path, label, device = str(self.classifier), self.positive_label, str(subject.device)
        scorer: SentimentReward = subject.bench.once(
            f"classifier {path} {label}",
            lambda: SentimentReward(path, label, device, subject.batch, key="oracle.classifier"),
        )
        return scorer

    def _measures(self, outcome: Outcome, bootstrap: Bootstrap, clusters: Sequence[Hashable]) -> dict[str, Measure]:
        measures = {
            "reward": Measure(
                **bootstrap.mean(outcome.reward, clusters),
                title="true reward",
                unit="units of the reward",
                meaning="mean true reward of the policy's samples on held-out prompts",
                better="higher",
                main=True,
            ),
            "reference_reward": Measure(
                **bootstrap.mean(outcome.baseline, clusters),
                title="reference's reward",
                unit="units of the reward",
                meaning="the same of the reference, where training started",
            ),
            "win_rate": Measure(
                **bootstrap.mean(wins(outcome.reward - outcome.baseline), clusters),
                title="win rate",
                unit="share of samples",
                meaning="share of samples with a higher true reward than the reference's to the same prompt, ties half",
                better="higher",
                main=True,
            ),
        }
        if self._samples_are_the_policys:
            measures["kl"] = Measure(
                **bootstrap.mean(outcome.own, clusters),
                title="KL to reference",
                unit="nats per sequence",
                meaning="KL(policy || reference): mean log-ratio of the policy's own samples",
                main=True,
            )
            measures["reverse_kl"] = Measure(
                **bootstrap.mean(-outcome.theirs, clusters),
                title="KL from reference",
                unit="nats per sequence",
                meaning="KL(reference || policy): mean negative log-ratio of the reference's samples; large where the"
                " policy gave up something that the reference does",
            )
        measures["tokens"] = Measure(
            **bootstrap.mean(outcome.tokens, clusters),
            title="response length",
            unit="tokens",
            meaning="mean length of the policy's samples, end of sequence included",
        )
        return measures

    def _perplexity(
        self, subject: EvaluatedPolicy, outcome: Outcome, bootstrap: Bootstrap, clusters: Sequence[Hashable]
    ) -> Measure:
        if self.perplexity_model is None:
            said, logps, tokens = "the reference, end of sequence included", outcome.under_reference, outcome.tokens
        else:
            said = f"{self.perplexity_model}, in that model's tokens, without end of sequence"
            logps, tokens = score_texts(self.perplexity_model, subject, outcome.prompts, outcome.texts)
        return Measure(
            **bootstrap.of_sums(lambda logp, count: np.exp(-logp / count), (logps, tokens), clusters),
            title="perplexity",
            unit="per token",
            meaning=f"exp of the mean negative log-prob per token of the policy's samples under {said}",
            main=True,
        )


def exact_measures(subject: EvaluatedPolicy) -> dict[str, Measure]:
    """What the environment knows without sampling (a table's expected reward and KL), where it knows anything."""
    exact = getattr(subject.data.source, "exact_metrics", None)
    if exact is None:
        return {}
    policy = subject.policy
    with subject.reference() as reference:
        found = exact(policy, reference, subject.own_reward_beta or subject.reward_beta)
    return {
        name: Measure(
            value=value,
            title=name.replace("_", " "),
            unit="nats" if "kl" in name else "units of the reward",
            meaning="exact: a sum over the whole distribution, without sampling",
        )
        for name, value in found.items()
    }
