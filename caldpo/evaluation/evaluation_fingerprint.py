"""What a result depends on, so that it is measured anew when any of it is another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from caldpo.config.path_digests import path_digests
from caldpo.console import versions
from caldpo.data.token_cache import tokenizer_digest
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.suite_base import Suite
from caldpo.resume.config_diff import config_digest

# Settings of the command that results depend on; the others say where and how fast.
_TELLING = ("max_pairs", "batch", "seed")
_LIBRARIES = ("scipy", "torchmetrics")  # whose arithmetic is in the measures, beside those that a run names


def determined_by(suite: Suite, subject: EvaluatedPolicy) -> dict[str, Any]:
    """Settings, weights, pairs, versions, and the files and folders that any of them name."""
    settings = suite.settings()
    own = {name: getattr(subject.settings, name) for name in _TELLING}
    own |= {"checkpoint": subject.settings.wanted, "precision": subject.precision, "reward_beta": subject.reward_beta}
    # a model has no configuration but these sections; of a run all is told that it was trained by
    config = {name: value for name, value in subject.target.config.items() if value is not None}
    named = {"suite": settings, "reference": subject.bench.reference, "config": _sections(config)}
    return {
        "suite": settings,
        "settings": own,
        "implicit_reward_beta": subject.own_reward_beta,
        "policy": subject.identity,
        "reference": subject.reference_identity,
        "step": subject.weights.step,
        "weights": [weights.stamp() for weights in (subject.weights, *suite.other_weights(subject))],
        "data": f"{subject.data.source.name}: {subject.data.test or subject.data.train}",
        "pairs": pairs_digest(subject),
        "configuration": config_digest(config),
        "tokenizer": tokenizer_digest(subject.tokenizer),
        "device": subject.device.type,
        "files": path_digests(named),
        "versions": versions() | {name: version(name) for name in _LIBRARIES},
    }


def _sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is built of a configuration, but for its data, whose pairs are looked at themselves."""
    return {name: config[name] for name in ("model", "adapter", "reference") if name in config}


def digest_of(facts: Mapping[str, Any]) -> str:
    """The same for the same facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def pairs_digest(subject: EvaluatedPolicy) -> str:
    """Of the held-out pairs' texts, tokens and scores."""
    content = hashlib.sha256(subject.data.test_pairs.digest().encode())
    for pair in subject.data.test_sources:
        told = [pair.prompt, pair.chosen, pair.rejected, pair.score_chosen, pair.score_rejected]
        content.update(json.dumps(told).encode())
    return content.hexdigest()[:16]
