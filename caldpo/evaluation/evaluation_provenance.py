"""Record what a result depends on, and check that a rebuilt run still is the run that was trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from caldpo.data.token_cache import tokenizer_digest
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.suite_base import Suite
from caldpo.resume.config_diff import config_digest
from caldpo.utils.digests import json_digest, path_digests
from caldpo.utils.versions import versions
from caldpo.utils.yaml_io import flatten

_SETTINGS = ("max_pairs", "batch", "seed")  # keys of the command that results depend on
_LIBRARIES = ("scipy", "torchmetrics")  # compute measures, besides the libraries whose versions a run records


def provenance_of(suite: Suite, policy: EvaluatedPolicy) -> dict[str, Any]:
    """Collect what a result depends on: settings, weights, pairs, versions, and the content of files they name."""
    suite_settings = suite.settings()
    config = {name: value for name, value in policy.target.config.items() if value is not None}
    # not the files of its data: the pairs have a digest of their own
    models = {name: config[name] for name in ("model", "adapter", "reference") if name in config}
    return {
        "suite": suite_settings,
        "settings": {
            **{name: getattr(policy.settings, name) for name in _SETTINGS},
            "checkpoint": policy.settings.wanted,
            "precision": policy.precision,
            "reward_beta": policy.reward_beta,
        },
        "implicit_reward_beta": policy.target.implicit_reward_beta,
        "policy": policy.identity,
        "reference": policy.reference_identity,
        "step": policy.weights.step,
        "weights": [weights.fingerprint() for weights in (policy.weights, *suite.other_weights(policy))],
        "data": f"{policy.data.source.name}: {policy.data.test or policy.data.train}",
        "pairs": _pairs_digest(policy),
        "configuration": config_digest(config),
        "tokenizer": tokenizer_digest(policy.tokenizer),
        "device": policy.device.type,
        "files": path_digests({"suite": suite_settings, "reference": policy.cache.reference, "config": models}),
        "versions": versions() | {name: version(name) for name in _LIBRARIES},
    }


def digest_of(provenance: Mapping[str, Any]) -> str:
    """Digest a provenance; equal provenances have equal digests."""
    return json_digest(provenance)[:16]


def _pairs_digest(policy: EvaluatedPolicy) -> str:
    """Digest the held-out pairs' texts, tokens and scores."""
    content = hashlib.sha256(policy.data.test_pairs.digest().encode())
    for pair in policy.data.test_sources:
        fields = [pair.prompt, pair.chosen, pair.rejected, pair.score_chosen, pair.score_rejected]
        content.update(json.dumps(fields).encode())
    return content.hexdigest()[:16]


def consistency_notes(policy: EvaluatedPolicy) -> list[str]:
    """Note where data or reference are not those of training; empty where all is unchanged."""
    if policy.target.run is None:
        return []
    if not policy.target.own_data:
        return [f"of the pairs of {policy.data.source.name} ({policy.data.test}), not of those that the run held out"]
    notes = _pair_notes(policy)
    # a hub model's identity includes its commit, an embedded model's its digest
    trained_with, now = policy.target.summary.get("reference"), policy.reference_identity
    if policy.cache.reference is not None:
        notes.insert(0, f"against {policy.cache.reference}, not the run's own reference")
    elif trained_with not in (None, now):
        notes.insert(0, f"the run was trained against {trained_with}; its configuration now builds {now}")
    return notes


def log_ratio_notes(policy: EvaluatedPolicy, chosen: float) -> list[str]:
    """Note where the run logged another mean chosen log-ratio than ``chosen`` (nats) for the same weights and pairs."""
    settings, logged = policy.settings, policy.target.summary.get("metrics", {}).get("val/log_ratios/chosen")
    comparable = (
        settings.checkpoint == "final"
        and settings.max_pairs is None
        and policy.cache.reference is None
        and policy.target.own_data
        and policy.weights.step == policy.target.steps
        and not _pair_notes(policy)
    )
    if not comparable or not isinstance(logged, float):
        return []
    # half precision rounds log-probs of long responses by whole nats
    tolerance = 1e-3 if policy.precision in ("32-true", "64-true") else 0.1
    if abs(chosen - logged) <= tolerance * (1 + abs(logged)):
        return []
    return [
        f"the run logged a mean chosen log-ratio of {logged:.4g} nats at its end where {chosen:.4g} is measured:"
        " its data, reference or weights have changed"
    ]


def _pair_notes(policy: EvaluatedPolicy) -> list[str]:
    then = flatten(policy.target.summary.get("data")).get("test.pairs")
    now = len(policy.data.test_pairs)
    if not isinstance(then, int) or then == now:
        return []
    return [f"{now:,} held-out pairs are evaluated where the run had {then:,}"]
