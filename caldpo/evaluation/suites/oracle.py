"""Score samples by the known reward: true reward, win rate, KL and perplexity, also over a run's checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
from caldpo.evaluation.model_loading import Weights, place
from caldpo.evaluation.pair_scoring import score_pairs
from caldpo.evaluation.suite_base import Measure, Result, Suite, UnsuitableDataError, truncation_notes
from caldpo.metric_definitions import KL, REFERENCE_REWARD, TRUE_REWARD, WIN_RATE, definition_of
from caldpo.models.hub_model import load_causal_lm, load_tokenizer
from caldpo.utils.atomic_io import write_text

SAMPLES = "oracle_samples.jsonl"  # beside the results
_PERPLEXITY_KEY = "oracle.perplexity_model"
Values = NDArray[np.float64]


@validated
@dataclass(frozen=True, kw_only=True)
class Oracle(Suite):
    """True reward, win rate over the reference, sequence KL and perplexity of samples.

    The KL is the mean log-ratio of the policy's own samples at temperature 1, an unbiased estimate. At another
    temperature samples are not the policy's, and it is left out.
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
        """Require a known reward, and checkpoints for ``checkpoints=all``."""
        if self.classifier is None and policy.data.oracle is None:
            raise UnsuitableDataError(
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
        """List the checkpoints before the policy's own step, where all are sampled."""
        if self.checkpoints == "final":
            return []
        end = policy.weights.step
        return [Weights(step, path) for step, path in policy.target.checkpoints().items() if end is None or step < end]

    def run(self, policy: EvaluatedPolicy) -> Result:
        sampling = policy.sampling(self.prompts, self.samples, self.max_new_tokens, self.temperature)
        bootstrap = Bootstrap(self.resamples, self.confidence, policy.settings.seed)
        earlier = [
            self._point(weights.step, self._score(policy.at(weights), sampling))
            for weights in self.other_weights(policy)
        ]
        samples = self._score(policy, sampling)
        start = []
        if self.checkpoints == "all" and policy.starts_from_reference:  # step 0 is the reference
            start = [
                {"step": 0, "reward": float(samples.reference_reward.to_numpy().mean()), "kl": 0.0, "win_rate": 0.5}
            ]
        clusters = [i // self.samples for i in range(len(samples))]  # the prompt of each sample
        measures = self._measures(samples, bootstrap, clusters)
        measures["perplexity"] = self._perplexity(policy, samples, bootstrap, clusters)
        measures |= _exact_measures(policy)
        _write(policy.folder / SAMPLES, samples)
        notes = truncation_notes(policy.samples("policy", sampling), policy.ends, sampling.max_new_tokens)
        if not self._samples_from_policy:
            notes.insert(0, "no KL: samples of another temperature than 1 are not the policy's")
        return Result(
            measures=measures,
            examples=len(samples),
            details={
                "points": [*start, *earlier, self._point(policy.weights.step, samples)],
                "prompts": len(samples) // self.samples,
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

    def _point(self, step: int | None, samples: pd.DataFrame) -> dict[str, Any]:
        reward, reference_reward = samples.policy_reward.to_numpy(), samples.reference_reward.to_numpy()
        kl = {"kl": float(samples.policy_log_ratio.to_numpy().mean())} if self._samples_from_policy else {}
        rate = float(wins(reward - reference_reward).mean())
        return {"step": step, "reward": float(reward.mean()), **kl, "win_rate": rate}

    def _score(self, policy: EvaluatedPolicy, sampling: Sampling) -> pd.DataFrame:
        """Sample policy and reference: a row per sample with texts, rewards, log-ratios (nats) and lengths (tokens).

        Samples to one prompt are neighbours. ``reference_logp`` is the policy's sample's under the reference,
        ``reference_log_ratio`` the policy/reference log-ratio of the reference's sample.
        """
        held_out = [h for h in policy.held_out(self.prompts) for _ in range(self.samples)]
        policy_ids, reference_ids = policy.samples("policy", sampling), policy.samples("reference", sampling)
        pairs = [
            TokenizedPair(h.prompt_ids, a, b, None, None, i, "")
            for i, (h, a, b) in enumerate(zip(held_out, policy_ids, reference_ids, strict=True))
        ]
        by_policy = policy.logps("policy", pairs, "samples of both")
        by_reference = policy.logps("reference", pairs, "samples of both")
        log_ratios = by_policy - by_reference
        decode = partial(policy.tokenizer.decode, skip_special_tokens=True)
        prompts = [h.prompt if isinstance(h.prompt, str) else str(decode(h.prompt_ids)) for h in held_out]
        texts, reference_texts = ([policy.decode(ids) for ids in side] for side in (policy_ids, reference_ids))
        return pd.DataFrame(
            {
                "prompt": prompts,
                "policy": texts,
                "reference": reference_texts,
                "policy_reward": self._rewards(policy, prompts, texts),
                "reference_reward": policy.once(
                    "reference", f"rewards {sampling}", lambda: self._rewards(policy, prompts, reference_texts)
                ),
                "policy_log_ratio": log_ratios[0],
                "reference_log_ratio": log_ratios[1],
                "reference_logp": by_reference[0],
                "policy_tokens": [len(ids) for ids in policy_ids],
                "ended": [ids[-1] in policy.ends for ids in policy_ids],
            }
        )

    def _rewards(self, policy: EvaluatedPolicy, prompts: Sequence[str], texts: Sequence[str]) -> Values:
        if self.classifier is None:
            return policy.data.true_rewards(prompts, texts)
        return np.array(self._classifier(policy)([prompt + text for prompt, text in zip(prompts, texts, strict=True)]))

    def _classifier(self, policy: EvaluatedPolicy) -> SentimentReward:
        path, label, key = str(self.classifier), self.positive_label, "oracle.classifier"
        load = partial(SentimentReward, path, label, str(policy.device), policy.batch, key=key)
        classifier: SentimentReward = policy.cache.once(key, load)
        return classifier

    def _measures(self, samples: pd.DataFrame, bootstrap: Bootstrap, clusters: list[int]) -> dict[str, Measure]:
        # logged metrics are of one sample per prompt, these of `samples`
        reward = TRUE_REWARD.measure_fields | {
            "meaning": "mean true reward of the policy's samples on held-out prompts"
        }
        win_rate = WIN_RATE.measure_fields | {
            "unit": "share of samples",
            "meaning": "share of samples with a higher true reward than the reference's to the same prompt, ties"
            " counted half",
        }
        gain = (samples.policy_reward - samples.reference_reward).to_numpy()
        measures = {
            "reward": Measure(**bootstrap.mean(samples.policy_reward, clusters), **reward, main=True),
            "reference_reward": Measure(
                **bootstrap.mean(samples.reference_reward, clusters), **REFERENCE_REWARD.measure_fields
            ),
            "win_rate": Measure(**bootstrap.mean(wins(gain), clusters), **win_rate, main=True),
        }
        if self._samples_from_policy:
            measures["kl"] = Measure(
                **bootstrap.mean(samples.policy_log_ratio, clusters), **KL.measure_fields, main=True
            )
            measures["reverse_kl"] = Measure(
                **bootstrap.mean(-samples.reference_log_ratio, clusters),
                title="KL from reference",
                unit=KL.unit,
                meaning="KL(reference || policy): mean negative log-ratio of the reference's samples, per sequence;"
                " large where the policy makes responses of the reference unlikely",
            )
        measures["tokens"] = Measure(
            **bootstrap.mean(samples.policy_tokens, clusters),
            title="response length",
            unit="tokens",
            meaning="mean length of the policy's samples, end of sequence included",
        )
        return measures

    def _perplexity(
        self, policy: EvaluatedPolicy, samples: pd.DataFrame, bootstrap: Bootstrap, clusters: list[int]
    ) -> Measure:
        if self.perplexity_model is None:
            scorer = "the reference, end of sequence included"
            logps, tokens = samples.reference_logp.to_numpy(), samples.policy_tokens.to_numpy()
        else:
            scorer = f"{self.perplexity_model}, in that model's tokens, without end of sequence"
            logps, tokens = _score_texts(self.perplexity_model, policy, samples)
        return Measure(
            **bootstrap.of_sums(lambda logp, count: np.exp(-logp / count), (logps, tokens), clusters),
            title="perplexity",
            unit="per token",
            meaning=f"exp of the mean negative log-prob per token of the policy's samples under {scorer}",
            main=True,
        )


def _exact_measures(policy: EvaluatedPolicy) -> dict[str, Measure]:
    """Compute what the data's source knows without sampling (expected reward and KL of a table); empty without."""
    source = policy.data.source
    if not isinstance(source, ExactSource):
        return {}
    model = policy.model
    with policy.model_of("reference") as reference:
        values = source.exact_metrics(model, reference, policy.target.implicit_reward_beta or policy.reward_beta)
    measures = {}
    for name, value in values.items():
        definition = definition_of(f"oracle/{name}")
        own = {"title": name.replace("_", " "), "unit": "data's units", "meaning": "exact, without sampling"}
        measures[name] = Measure(value=value, **(own if definition is None else definition.measure_fields))
    return measures


def _score_texts(path: str, policy: EvaluatedPolicy, samples: pd.DataFrame) -> tuple[Values, Values]:
    """Sum log-probs (nats) and count tokens of each sample under another model, in its own tokens.

    Both are 0 for an empty text.
    """

    def load() -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        tokenizer = load_tokenizer(path, key=_PERPLEXITY_KEY)  # first: a missing one is refused before weights load
        model = load_causal_lm(path, key=_PERPLEXITY_KEY, dtype="auto")
        return tokenizer, place(model, policy.precision, policy.device)

    tokenizer, model = policy.cache.once(f"{_PERPLEXITY_KEY} {policy.precision}", load)
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in samples.prompt]
    text_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in samples.policy]
    logps, tokens = np.zeros(len(text_ids)), np.array([len(ids) for ids in text_ids], dtype=np.float64)
    written = np.flatnonzero(tokens)
    start = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    pairs = [
        TokenizedPair(prompt_ids[i] or start, text_ids[i], text_ids[i][:1], None, None, n, "")
        for n, i in enumerate(written)
    ]
    logps[written] = score_pairs(
        model,
        pairs,
        pad_id=tokenizer.pad_token_id,
        batch=policy.batch,
        label="perplexity",
        context=policy.context,
        whose=f"{path}'s",
    )[0]
    return logps, tokens


def _write(path: Path, samples: pd.DataFrame) -> None:
    rows = samples.drop(columns=["reference_log_ratio", "reference_logp"]).to_dict("records")
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
