"""Score samples by the known reward: true reward, win rate, KL and perplexity, also over a run's checkpoints."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from caldpo.config.bounds import NonNegative, PositiveInt, Share
from caldpo.config.signatures import validated
from caldpo.data.pair import TokenizedPair
from caldpo.data.raw_row import ExactSource
from caldpo.data.sources.sentiment_reward import SentimentReward
from caldpo.environments.reward_agreement import wins
from caldpo.errors import CaldpoError
from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.evaluation.model_loading import Weights
from caldpo.evaluation.scored_samples import SAMPLES, ScoredSamples, score_texts, truncation_notes
from caldpo.evaluation.suite_base import Measure, Result, Suite
from caldpo.metric_definitions import KL, REFERENCE_REWARD, TRUE_REWARD, WIN_RATE, definition_of

Values = NDArray[np.float64]


@validated
@dataclass(frozen=True, kw_only=True)
class Oracle(Suite):
    """True reward, win rate over the reference, sequence KL and perplexity of samples.

    The KL is the mean log-ratio of the policy's own samples at temperature 1, an unbiased estimate. At another
    temperature samples are not the policy's, and it is left out.

    Args:
        prompts: number of held-out prompts.
        samples: responses to each.
        max_new_tokens: longest response, tokens; None takes the length of the run's own samples.
        temperature: of plain sampling from the whole distribution.
        checkpoints: ``all`` also samples every saved checkpoint: the path from reference to policy.
        classifier: hub id or folder of a sentiment classifier whose log-odds are the reward; None takes the data's own.
        positive_label: the classifier's name for the positive class.
        perplexity_model: hub id or folder of the model that scores the texts; None takes the reference.
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

    def check_policy(self, policy: EvaluatedPolicy) -> None:
        """Require a known reward, and checkpoints for ``checkpoints=all``.

        Raises:
            CaldpoError: one is missing.
        """
        if self.classifier is None and policy.data.oracle is None:
            raise CaldpoError(
                f"the true reward of a response is unknown on this data ({policy.data.source.name})",
                key="suite",
                value=self.name,
                remedy="use data with a known reward (reviews, tabular, imdb), name a classifier by oracle.classifier,"
                " or ask a judge: suite=judge",
            )
        if self.checkpoints == "all" and not policy.target.checkpoints():
            raise CaldpoError(
                f"{policy.target.name} saved no checkpoints",
                key="oracle.checkpoints",
                value="all",
                remedy="use oracle.checkpoints=final, or train with callbacks.checkpoint.every=N"
                " callbacks.checkpoint.keep=all",
            )
        if self.classifier is not None:
            self._classifier(policy)  # small, so that an error comes before the policy loads

    def other_weights(self, policy: EvaluatedPolicy) -> list[Weights]:
        return self._earlier_weights(policy)

    def run(self, policy: EvaluatedPolicy) -> Result:
        sampling = policy.sampling(self.prompts, self.samples, self.max_new_tokens, self.temperature)
        bootstrap = Bootstrap(self.resamples, self.confidence, policy.settings.seed)
        prompts = [h.prompt_ids for h in policy.held_out(self.prompts)]
        clusters = [i for i in range(len(prompts)) for _ in range(self.samples)]
        earlier = [
            self._point(weights.step, self._score(policy.at(weights), sampling))
            for weights in self._earlier_weights(policy)
        ]
        samples = self._score(policy, sampling)
        measures = self._measures(samples, bootstrap, clusters)
        measures["perplexity"] = self._perplexity(policy, samples, bootstrap, clusters)
        measures |= exact_measures(policy)
        samples.write(policy.folder / SAMPLES)
        points = [*self._start(policy, samples), *earlier, self._point(policy.weights.step, samples)]
        notes = truncation_notes(policy.samples("policy", sampling), policy.ends, sampling.max_new_tokens)
        if not self._samples_from_policy:
            notes.insert(0, "no KL: samples of another temperature than 1 are not the policy's")
        return Result(
            measures=measures,
            examples=len(samples.reward),
            details={
                "points": points,
                "prompts": len(prompts),
                "samples": self.samples,
                "max_new_tokens": sampling.max_new_tokens,
                "reward": self.classifier or f"of the data: {policy.data.source.name}",
                "perplexity_model": self.perplexity_model or policy.reference_identity,
                "confidence": self.confidence,
            },
            notes=notes,
        )

    @property
    def _samples_from_policy(self) -> bool:
        """Whether samples are of the policy's own distribution."""
        return self.temperature == 1

    def _earlier_weights(self, policy: EvaluatedPolicy) -> list[Weights]:
        """List the checkpoints before the policy's own step."""
        if self.checkpoints == "final":
            return []
        end = policy.weights.step
        return [Weights(step, path) for step, path in policy.target.checkpoints().items() if end is None or step < end]

    def _start(self, policy: EvaluatedPolicy, samples: ScoredSamples) -> list[dict[str, Any]]:
        """Return the first point of the path: the reference, if training started from it."""
        if self.checkpoints == "final" or not policy.starts_from_reference:
            return []
        return [{"step": 0, "reward": float(samples.reference_reward.mean()), "kl": 0.0, "win_rate": 0.5}]

    def _point(self, step: int | None, samples: ScoredSamples) -> dict[str, Any]:
        kl = {"kl": float(samples.log_ratio.mean())} if self._samples_from_policy else {}
        rate = float(wins(samples.reward - samples.reference_reward).mean())
        return {"step": step, "reward": float(samples.reward.mean()), **kl, "win_rate": rate}

    def _score(self, policy: EvaluatedPolicy, sampling: Sampling) -> ScoredSamples:
        """Sample policy and reference, and compute rewards and log-ratios of both sides' samples."""
        held_out = [h for h in policy.held_out(self.prompts) for _ in range(self.samples)]
        policy_ids, reference_ids = policy.samples("policy", sampling), policy.samples("reference", sampling)
        pairs = [
            TokenizedPair(h.prompt_ids, a, b, None, None, i, "")
            for i, (h, a, b) in enumerate(zip(held_out, policy_ids, reference_ids, strict=True))
        ]
        by_policy = policy.logps("policy", pairs, "samples of both")
        by_reference = policy.logps("reference", pairs, "samples of both")
        log_ratios = by_policy - by_reference
        prompts = [policy.prompt_text(h) for h in held_out]
        texts, reference_texts = ([policy.decode(ids) for ids in side] for side in (policy_ids, reference_ids))
        return ScoredSamples(
            reward=self._rewards(policy, prompts, texts),
            reference_reward=policy.cache.once(
                f"rewards {self.classifier} {self.positive_label} {policy.sampling_key(sampling)}",
                lambda: self._rewards(policy, prompts, reference_texts),
            ),
            log_ratio=log_ratios[0],
            reference_log_ratio=log_ratios[1],
            reference_logp=by_reference[0],
            prompts=prompts,
            texts=texts,
            reference_texts=reference_texts,
            tokens=np.array([len(ids) for ids in policy_ids], dtype=np.float64),
            ended=np.array([ids[-1] in policy.ends for ids in policy_ids]),
        )

    def _rewards(self, policy: EvaluatedPolicy, prompts: Sequence[str], texts: Sequence[str]) -> Values:
        if self.classifier is None:
            return policy.data.true_rewards(prompts, texts)
        classifier = self._classifier(policy)
        return np.array(classifier([prompt + text for prompt, text in zip(prompts, texts, strict=True)]))

    def _classifier(self, policy: EvaluatedPolicy) -> SentimentReward:
        path, label, device = str(self.classifier), self.positive_label, str(policy.device)
        classifier: SentimentReward = policy.cache.once(
            f"classifier {path} {label}",
            lambda: SentimentReward(path, label, device, policy.batch, key="oracle.classifier"),
        )
        return classifier

    def _measures(
        self, samples: ScoredSamples, bootstrap: Bootstrap, clusters: Sequence[Hashable]
    ) -> dict[str, Measure]:
        # logged metrics are of one sample per prompt, these of `samples`
        reward = TRUE_REWARD.words | {"meaning": "mean true reward of the policy's samples on held-out prompts"}
        win_rate = WIN_RATE.words | {
            "unit": "share of samples",
            "meaning": "share of samples with a higher true reward than the reference's to the same prompt, ties"
            " counted half",
        }
        gain = samples.reward - samples.reference_reward
        measures = {
            "reward": Measure(**bootstrap.mean(samples.reward, clusters), **reward, main=True),
            "reference_reward": Measure(**bootstrap.mean(samples.reference_reward, clusters), **REFERENCE_REWARD.words),
            "win_rate": Measure(**bootstrap.mean(wins(gain), clusters), **win_rate, main=True),
        }
        if self._samples_from_policy:
            measures["kl"] = Measure(**bootstrap.mean(samples.log_ratio, clusters), **KL.words, main=True)
            measures["reverse_kl"] = Measure(
                **bootstrap.mean(-samples.reference_log_ratio, clusters),
                title="KL from reference",
                unit=KL.unit,
                meaning="KL(reference || policy): mean negative log-ratio of the reference's samples, per sequence;"
                " large where the policy makes responses of the reference unlikely",
            )
        measures["tokens"] = Measure(
            **bootstrap.mean(samples.tokens, clusters),
            title="response length",
            unit="tokens",
            meaning="mean length of the policy's samples, end of sequence included",
        )
        return measures

    def _perplexity(
        self, policy: EvaluatedPolicy, samples: ScoredSamples, bootstrap: Bootstrap, clusters: Sequence[Hashable]
    ) -> Measure:
        if self.perplexity_model is None:
            scorer, logps, tokens = "the reference, end of sequence included", samples.reference_logp, samples.tokens
        else:
            scorer = f"{self.perplexity_model}, in that model's tokens, without end of sequence"
            logps, tokens = score_texts(self.perplexity_model, policy, samples.prompts, samples.texts)
        return Measure(
            **bootstrap.of_sums(lambda logp, count: np.exp(-logp / count), (logps, tokens), clusters),
            title="perplexity",
            unit="per token",
            meaning=f"exp of the mean negative log-prob per token of the policy's samples under {scorer}",
            main=True,
        )


def exact_measures(policy: EvaluatedPolicy) -> dict[str, Measure]:
    """Compute what the data's source knows without sampling (expected reward and KL of a table); empty without."""
    source = policy.data.source
    if not isinstance(source, ExactSource):
        return {}
    model = policy.model
    with policy.reference_model() as reference:
        values = source.exact_metrics(model, reference, policy.target.implicit_reward_beta or policy.reward_beta)
    return {name: Measure(value=value, **_exact_words(name)) for name, value in values.items()}


def _exact_words(name: str) -> dict[str, Any]:
    definition = definition_of(f"oracle/{name}")
    if definition is not None:
        return definition.words
    return {"title": name.replace("_", " "), "unit": "data's units", "meaning": "exact, without sampling"}
