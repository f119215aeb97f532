"""Hold samples of a policy with their rewards and log-ratios, write them, and score texts by another model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caldpo.data.pair import TokenizedPair
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.model_loading import place
from caldpo.evaluation.pair_scoring import score_pairs
from caldpo.models.hub_model import load_causal_lm, load_tokenizer
from caldpo.utils.atomic_io import write_text

SAMPLES = "oracle_samples.jsonl"  # beside the results
_NOTED_SHARE = 0.05  # of truncated responses, from which on a note says so
_PERPLEXITY_KEY = "oracle.perplexity_model"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredSamples:
    """Samples of one policy and of its reference, each array ``(prompts x samples,)``, a prompt's samples in a row.

    Args:
        reward: true reward of the policy's samples.
        reference_reward: true reward of the reference's samples.
        log_ratio: log-ratio policy/reference of the policy's samples, nats.
        reference_log_ratio: the same of the reference's samples.
        reference_logp: log-prob of the policy's samples under the reference, nats.
        prompts: as text.
        texts: the policy's responses.
        reference_texts: the reference's responses.
        tokens: length of the policy's responses, end token included.
        ended: whether they have an end token.
    """

    reward: Values
    reference_reward: Values
    log_ratio: Values
    reference_log_ratio: Values
    reference_logp: Values
    prompts: list[str]
    texts: list[str]
    reference_texts: list[str]
    tokens: Values
    ended: NDArray[np.bool_]

    def write(self, path: Path) -> None:
        """Write the texts with their rewards, one JSON line per sample."""
        columns = {
            "prompt": self.prompts,
            "policy": self.texts,
            "reference": self.reference_texts,
            "policy_reward": self.reward.tolist(),
            "reference_reward": self.reference_reward.tolist(),
            "policy_log_ratio": self.log_ratio.tolist(),
            "policy_tokens": self.tokens.astype(int).tolist(),
            "ended": self.ended.tolist(),
        }
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def truncation_notes(responses: Sequence[Sequence[int]], ends: Sequence[int], longest: int) -> list[str]:
    """Note where many of the policy's responses were truncated, since a judge or a reward then misses their end.

    Args:
        responses: token ids of each.
        ends: the ids that end one.
        longest: largest length of a response, tokens.
    """
    share = sum(len(ids) >= longest and ids[-1] not in ends for ids in responses) / max(1, len(responses))
    return [f"{share:.0%} of the policy's responses were cut at {longest} tokens"] if share > _NOTED_SHARE else []


def score_texts(
    path: str, policy: EvaluatedPolicy, prompts: Sequence[str], texts: Sequence[str]
) -> tuple[Values, Values]:
    """Sum log-probs (nats) and count tokens of each text under another model; both are 0 for an empty text.

    Args:
        path: hub id or folder of that model, which reads the texts in its own tokens.
        policy: who wrote the texts.
        prompts: of each text.
        texts: the responses.
    """
    tokenizer = policy.cache.once(f"tokenizer {path}", lambda: load_tokenizer(path, key=_PERPLEXITY_KEY))
    model = policy.cache.once(
        f"perplexity {path} {policy.precision}",
        lambda: place(load_causal_lm(path, key=_PERPLEXITY_KEY, dtype="auto"), policy.precision, policy.device),
    )
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    text_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    logps, tokens = np.zeros(len(texts)), np.array([len(ids) for ids in text_ids], dtype=np.float64)
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
